package source

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"go.uber.org/zap"
)

// keep saves a file that was found free of errors, and forgets one that is gone.
func (m *Manifests) keep(f *file) {
	if f.saved == "" {
		return
	}
	var err error
	switch {
	case f.content != nil:
		err = replaceFile(f.saved, f.content)
	case f.removed:
		err = removeFile(f.saved)
	}
	f.content, f.removed = nil, false
	if err != nil {
		m.options.Log.Warn("save manifest", zap.String("file", f.path), zap.Error(err))
	}
}

// prune removes what was saved of files that are not there any more.
func (m *Manifests) prune() {
	entries, _ := os.ReadDir(m.options.Saved)
	for _, entry := range entries {
		if _, there := m.files[entry.Name()]; there {
			continue
		}
		if err := removeFile(filepath.Join(m.options.Saved, entry.Name())); err != nil {
			m.options.Log.Warn("remove saved manifest", zap.Error(err))
		}
	}
}

// replaceFile writes a file as a whole: a reader finds the old content or the new.
func replaceFile(path string, content []byte) error {
	temporary := filepath.Join(filepath.Dir(path), "."+filepath.Base(path))
	if err := os.WriteFile(temporary, content, 0o600); err != nil {
		return fmt.Errorf("write: %w", err)
	}
	if err := os.Rename(temporary, path); err != nil {
		return fmt.Errorf("put in place: %w", err)
	}
	return nil
}

func removeFile(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
