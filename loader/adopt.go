package loader

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"github.com/cilium/ebpf"

	weirmaps "github.com/weir-lb/weir/maps"
)

// programsDir holds the pinned programs, each under its name in C.
const programsDir = "programs"

// Adopt returns the programs of an instance, whose pins are in dir. Where the pinned ones are these programs, loaded
// over these maps with these constants, they are opened and nothing is changed. Else they are loaded and pinned in
// the others' place; what is attached follows when an Attacher sees it.
func Adopt(dir string, set *weirmaps.Set, constants Constants) (*Programs, error) {
	digest, err := programsDigest(set, constants)
	if err != nil {
		return nil, err
	}
	pins := filepath.Join(dir, programsDir)
	pinned, err := pinnedDigest(set)
	if err != nil {
		return nil, err
	}
	if pinned == digest {
		if programs, err := openPrograms(pins, set, constants); err == nil {
			return programs, nil
		}
	}
	programs, err := Load(set, constants)
	if err != nil {
		return nil, err
	}
	if err := programs.publish(pins, set, digest); err != nil {
		return nil, errors.Join(err, programs.Close())
	}
	return programs, nil
}

// openPrograms opens all the pinned programs, or none.
func openPrograms(pins string, set *weirmaps.Set, constants Constants) (*Programs, error) {
	programs := newPrograms(set, constants)
	for name, handle := range programs.fields {
		program, err := ebpf.LoadPinnedProgram(filepath.Join(pins, name), nil)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("open program %s: %w", name, err), programs.Close())
		}
		*handle = program
	}
	return programs, nil
}

// publish pins the programs in the place of others. While it works the digest is none: whoever finds it interrupted
// loads anew.
func (p *Programs) publish(pins string, set *weirmaps.Set, digest [32]byte) error {
	if err := os.MkdirAll(pins, 0o700); err != nil {
		return fmt.Errorf("make %s: %w", pins, err)
	}
	if err := storeDigest(set, [32]byte{}); err != nil {
		return err
	}
	for name, handle := range p.fields {
		if err := pinInPlace(*handle, filepath.Join(pins, name)); err != nil {
			return fmt.Errorf("pin program %s: %w", name, err)
		}
	}
	return storeDigest(set, digest)
}

// newPin is the ending of a pin that is about to be renamed to the name before it. (bpffs refuses names with dots.)
const newPin = "-new"

// pinInPlace pins something under a path, in the place of what is pinned there.
func pinInPlace(what interface{ Pin(string) error }, path string) error {
	if err := os.Remove(path + newPin); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := what.Pin(path + newPin); err != nil {
		return err
	}
	return os.Rename(path+newPin, path)
}

// programsDigest tells programs apart by what they are made of: their objects, their constants and the maps they use.
func programsDigest(set *weirmaps.Set, constants Constants) (digest [32]byte, err error) {
	sum := sha256.New()
	for _, object := range [][]byte{
		_NodeXdpBytes, _NodeIngressBytes, _NodeEgressBytes, _PodIngressBytes, _PodEgressBytes, _SweepBytes,
		_SocketConnectBytes, _SocketSendmsgBytes, _SocketRecvmsgBytes, _SocketGetpeernameBytes, _SocketBindBytes,
		_SocketReleaseBytes,
	} {
		add(sum, object)
	}
	variables := constants.variables()
	for _, name := range slices.Sorted(maps.Keys(variables)) {
		add(sum, fmt.Appendf(nil, "%s=%v", name, variables[name]))
	}
	shared := set.Replacements()
	for _, name := range slices.Sorted(maps.Keys(shared)) {
		info, err := shared[name].Info()
		if err != nil {
			return digest, fmt.Errorf("read about map %s: %w", name, err)
		}
		id, _ := info.ID()
		add(sum, fmt.Appendf(nil, "%s=%d", name, id))
	}
	return [32]byte(sum.Sum(nil)), nil
}

// add adds a part to a sum, with its length, so that no two lists of parts have one sum.
func add(sum hash.Hash, part []byte) {
	sum.Write(binary.BigEndian.AppendUint64(nil, uint64(len(part))))
	sum.Write(part)
}

// pinnedDigest returns the digest of the pinned programs; zeros if it is not certain which they are.
func pinnedDigest(set *weirmaps.Set) ([32]byte, error) {
	var record weirmaps.AgentRecord
	if err := set.AgentState.Lookup(uint32(0), &record); err != nil {
		return [32]byte{}, fmt.Errorf("read the digest of the pinned programs: %w", err)
	}
	return record.ProgramsDigest, nil
}

func storeDigest(set *weirmaps.Set, digest [32]byte) error {
	var record weirmaps.AgentRecord
	if err := set.AgentState.Lookup(uint32(0), &record); err != nil {
		return fmt.Errorf("read the digest of the pinned programs: %w", err)
	}
	record.ProgramsDigest = digest
	if err := set.AgentState.Put(uint32(0), &record); err != nil {
		return fmt.Errorf("write the digest of the pinned programs: %w", err)
	}
	return nil
}
