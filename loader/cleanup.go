package loader

import "errors"

// Cleanup detaches and unpins everything of the instance whose pins are in dir, and removes dir. It returns what it
// removed, one line each. No agent may run: the caller holds the lock (status.Take). Filters are found in the network
// namespace of the calling thread. To clean up where there is nothing is fine.
func Cleanup(dir string) (removed []string, err error) {
	return nil, errors.ErrUnsupported
}
