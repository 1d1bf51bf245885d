package loader

import (
	"errors"
	"io/fs"
	"os"
)

func pinInPlace(what interface{ Pin(string) error }, path string) error {
	if err := os.Remove(path + "-new"); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := what.Pin(path + "-new"); err != nil {
		return err
	}
	return os.Rename(path+"-new", path)
}
