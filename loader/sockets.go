package loader

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/weir-lb/weir/maps"
)

// ErrNoListing says that the kernel cannot tell what its sockets are connected to.
var ErrNoListing = errors.New("the kernel does not list sockets with their peers (Linux 5.12)")

// Sockets finds the sockets that the socket edge has connected, and closes some. It works in the network namespace of
// the calling thread. It is no part of the datapath: nothing of it is pinned.
type Sockets struct {
	list    map[int]*link.Iter // by protocol
	destroy map[int]*link.Iter // nil: the kernel has no bpf_sock_destroy, and is asked by netlink
	doomed  *ebpf.Map
}

// ConnectedSocket is a socket that the socket edge has connected.
type ConnectedSocket struct {
	Cookie uint64
	Peer   maps.SocketPeer
}

// NewSockets loads what it needs. ErrNoListing: the kernel is too old.
func NewSockets(set *maps.Set) (*Sockets, error) {
	s := &Sockets{}
	var err error
	if s.list, _, err = loadIterators(loadSocketList, "socket_list", set); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNoListing, err)
	}
	var more map[string]*ebpf.Map
	if s.destroy, more, err = loadIterators(loadSocketDestroy, "socket_destroy", set); err == nil {
		s.doomed = more["doomed_sockets"]
	}
	return s, nil
}

// loadIterators loads an object with two iterators, and returns them with the maps that are its own.
func loadIterators(read func() (*ebpf.CollectionSpec, error), name string, set *maps.Set) (map[int]*link.Iter, map[string]*ebpf.Map, error) {
	spec, err := read()
	if err != nil {
		return nil, nil, fmt.Errorf("read a program object: %w", err)
	}
	shared, own := sharedMaps(spec, set), map[string]*ebpf.Map{}
	collection, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{MapReplacements: shared})
	if err != nil {
		return nil, nil, fmt.Errorf("load programs: %w", err)
	}
	defer collection.Close()
	iterators := map[int]*link.Iter{}
	for protocol, program := range map[int]string{unix.IPPROTO_UDP: name + "_udp", unix.IPPROTO_TCP: name + "_tcp"} {
		if iterators[protocol], err = link.AttachIter(link.IterOptions{Program: collection.Programs[program]}); err != nil {
			return nil, nil, errors.Join(fmt.Errorf("make iterator %s: %w", program, err), closeIterators(iterators))
		}
	}
	for m := range spec.Maps {
		if shared[m] == nil {
			own[m] = collection.DetachMap(m)
		}
	}
	return iterators, own, nil
}

func closeIterators(iterators map[int]*link.Iter) (failed error) {
	for _, iterator := range iterators {
		if iterator != nil {
			failed = errors.Join(failed, iterator.Close())
		}
	}
	return failed
}

// List returns the sockets of a protocol that are connected to a backend under a frontend's name.
func (s *Sockets) List(protocol int) ([]ConnectedSocket, error) {
	content, err := readIterator(s.list[protocol])
	if err != nil {
		return nil, fmt.Errorf("list sockets: %w", err)
	}
	var listed []ConnectedSocket
	for reader := bytes.NewReader(content); ; {
		var one ConnectedSocket
		err := binary.Read(reader, binary.NativeEndian, &one)
		if errors.Is(err, io.EOF) {
			return listed, nil
		}
		if err != nil {
			return nil, fmt.Errorf("list sockets: %w", err)
		}
		listed = append(listed, one)
	}
}

func readIterator(iterator *link.Iter) ([]byte, error) {
	reader, err := iterator.Open()
	if err != nil {
		return nil, err
	}
	defer reader.Close()
	return io.ReadAll(reader)
}

// Destroy closes sockets of a protocol, by their cookies. Those that have gone are none.
func (s *Sockets) Destroy(protocol int, cookies []uint64) error {
	if s.doomed == nil {
		return destroyByNetlink(protocol, cookies)
	}
	for len(cookies) > 0 {
		some := cookies[:min(len(cookies), int(s.doomed.MaxEntries()))]
		cookies = cookies[len(some):]
		if err := s.destroySome(protocol, some); err != nil {
			return err
		}
	}
	return nil
}

func (s *Sockets) destroySome(protocol int, cookies []uint64) (failed error) {
	defer func() {
		for _, cookie := range cookies {
			if err := s.doomed.Delete(cookie); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
				failed = errors.Join(failed, err)
			}
		}
	}()
	for _, cookie := range cookies {
		if err := s.doomed.Put(cookie, uint32(1)); err != nil {
			return fmt.Errorf("name sockets to close: %w", err)
		}
	}
	if _, err := readIterator(s.destroy[protocol]); err != nil {
		return fmt.Errorf("close sockets: %w", err)
	}
	return nil
}

// Close lets go of the programs.
func (s *Sockets) Close() error {
	failed := errors.Join(closeIterators(s.list), closeIterators(s.destroy))
	if s.doomed != nil {
		failed = errors.Join(failed, s.doomed.Close())
	}
	return failed
}
