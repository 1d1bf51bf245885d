package loader

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"go.uber.org/zap"
)

// linksDir holds the pinned links, "<ifindex>-<program>": names change, and a device that takes over an index is told
// by its links, which are those of no device.
const linksDir = "links"

// linkPin is where the link of a program on a device is pinned.
func (a *Attacher) linkPin(ifindex int, program string) string {
	return filepath.Join(a.options.Pins, linksDir, fmt.Sprintf("%d-%s", ifindex, program))
}

// parsePin reads the name of a link's pin.
func parsePin(name string) (ifindex int, program string, ok bool) {
	index, program, found := strings.Cut(name, "-")
	ifindex, err := strconv.Atoi(index)
	return ifindex, program, found && err == nil && !strings.HasSuffix(program, newPin)
}

// pinnedLink is a link that was found pinned.
type pinnedLink struct {
	link.Link
	id      link.ID
	program ebpf.ProgramID
	ifindex int // of the device it is on; 0: that device is gone
}

// openLink opens a pinned link. It returns nil if nothing is pinned there.
func openLink(path string) (*pinnedLink, error) {
	opened, err := link.LoadPinnedLink(path, nil)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	info, err := opened.Info()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("read about link %s: %w", path, err), opened.Close())
	}
	pinned := &pinnedLink{Link: opened, id: info.ID, program: info.Program}
	if tcx := info.TCX(); tcx != nil {
		pinned.ifindex = int(tcx.Ifindex)
	} else if xdp := info.XDP(); xdp != nil {
		pinned.ifindex = int(xdp.Ifindex)
	}
	return pinned, nil
}

// pinnedLinks returns the ids of all links that are pinned for a device.
func (a *Attacher) pinnedLinks(ifindex int) (map[link.ID]bool, error) {
	ids := map[link.ID]bool{}
	for _, program := range tcPrograms() {
		pinned, err := openLink(a.linkPin(ifindex, program))
		if err != nil {
			return nil, err
		}
		if pinned != nil {
			ids[pinned.id] = true
			pinned.Close()
		}
	}
	return ids, nil
}

// pinLink pins a link in the place of another.
func (a *Attacher) pinLink(l link.Link, path string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return fmt.Errorf("make the directory of links: %w", err)
	}
	if err := pinInPlace(l, path); err != nil {
		return fmt.Errorf("pin link %s: %w", filepath.Base(path), err)
	}
	return nil
}

// updateLink makes a link run a program, unless it does already.
func (a *Attacher) updateLink(pinned *pinnedLink, program *ebpf.Program, fields []zap.Field) error {
	info, err := program.Info()
	if err != nil {
		return fmt.Errorf("read about a program: %w", err)
	}
	if id, ok := info.ID(); ok && id == pinned.program {
		return nil
	}
	if err := pinned.Update(program); err != nil {
		return fmt.Errorf("replace a program: %w", err)
	}
	a.done("replaced", updated, fields...)
	return nil
}

// unpinLink detaches a link and removes its pin. That there is none is fine. It counts if the link was on a device.
func (a *Attacher) unpinLink(path string, count bool) error {
	live, err := unpin(path)
	if err != nil {
		return err
	}
	if live && count {
		a.done("detached", detached, zap.String("link", filepath.Base(path)))
	}
	return nil
}

// unpin detaches a link and removes its pin, and tells whether the link was on a device.
func unpin(path string) (live bool, err error) {
	pinned, err := openLink(path)
	if err != nil || pinned == nil {
		return false, err
	}
	defer pinned.Close()
	live = pinned.ifindex != 0
	// Without it the link goes when its last handle does, some time later. A link of no device is no more.
	if err := pinned.Detach(); err != nil && live {
		return live, fmt.Errorf("detach %s: %w", filepath.Base(path), err)
	}
	return live, os.Remove(path)
}

// Retain forgets, and unpins, whatever belongs to other devices than these.
func (a *Attacher) Retain(ifindexes []int) error {
	entries, err := os.ReadDir(filepath.Join(a.options.Pins, linksDir))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	var failed error
	for _, entry := range entries {
		ifindex, _, ok := parsePin(entry.Name())
		if ok && slices.Contains(ifindexes, ifindex) {
			continue
		}
		failed = errors.Join(failed, a.unpinLink(filepath.Join(a.options.Pins, linksDir, entry.Name()), true))
	}
	for _, ifindex := range a.markedQdiscs() {
		if !slices.Contains(ifindexes, ifindex) {
			failed = errors.Join(failed, os.Remove(a.qdiscMark(ifindex)))
		}
	}
	for _, attachment := range a.Attachments() {
		if !slices.Contains(ifindexes, attachment.Ifindex) {
			a.forget(attachment.Ifindex)
		}
	}
	return failed
}
