package loader

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/vishvananda/netlink"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"
)

// Cleanup detaches and unpins everything of the instance whose pins are in dir, and removes dir. It returns what it
// removed, one line each. No agent may run: the caller holds the lock (status.Take). Filters are found in the network
// namespace of the calling thread. To clean up where there is nothing is fine.
func Cleanup(dir string) (removed []string, err error) {
	links, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open a netlink socket: %w", err)
	}
	defer links.Close()
	a := &Attacher{options: AttachOptions{Pins: dir, Log: zap.NewNop()}, links: links}
	unpinned, err := a.removeLinks()
	filters, filtersErr := a.removeFilters()
	sockets, socketsErr := DetachSockets(dir)
	removed = slices.Concat(unpinned, filters, sockets)
	if err := errors.Join(err, filtersErr, socketsErr); err != nil {
		return removed, err
	}
	pins, err := countPins(dir)
	if err != nil {
		return removed, err
	}
	if err := os.RemoveAll(dir); err != nil {
		return removed, fmt.Errorf("remove the pins: %w", err)
	}
	if pins > 0 {
		removed = append(removed, fmt.Sprintf("%d pinned maps and programs in %s", pins, dir))
	}
	return removed, nil
}

// removeLinks detaches and unpins every link.
func (a *Attacher) removeLinks() (removed []string, failed error) {
	dir := filepath.Join(a.options.Pins, linksDir)
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	for _, entry := range entries {
		live, err := unpin(filepath.Join(dir, entry.Name()))
		failed = errors.Join(failed, err)
		if live {
			removed = append(removed, a.describePin(entry.Name()))
		}
	}
	return removed, failed
}

// describePin says in words what a link was.
func (a *Attacher) describePin(name string) string {
	ifindex, program, _ := parsePin(name)
	device := fmt.Sprintf("device %d", ifindex)
	if found, err := a.links.LinkByIndex(ifindex); err == nil {
		device = found.Attrs().Name
	}
	return fmt.Sprintf("%s from %s", program, device)
}

// removeFilters removes every filter of ours, and the qdiscs that only those needed.
func (a *Attacher) removeFilters() (removed []string, failed error) {
	devices, err := DumpWhole(a.links.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list devices: %w", err)
	}
	for _, device := range devices {
		for _, s := range []side{ingressSide(), egressSide()} {
			ours, err := a.ourFilters(device.Attrs().Index, s)
			failed = errors.Join(failed, err)
			for _, filter := range ours {
				failed = errors.Join(failed, a.removeFilter(filter))
				removed = append(removed, fmt.Sprintf("filter %s from %s", programOfFilter(filter), device.Attrs().Name))
			}
		}
		failed = errors.Join(failed, a.removeQdisc(device.Attrs().Index))
	}
	return removed, failed
}

// countPins counts what is pinned in a directory and those in it.
func countPins(dir string) (int, error) {
	count := 0
	err := filepath.WalkDir(dir, func(_ string, entry fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err == nil && !entry.IsDir() {
			count++
		}
		return err
	})
	return count, err
}
