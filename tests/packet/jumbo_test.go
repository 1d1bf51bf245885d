package packet

import (
	"bytes"
	"encoding/binary"
	"slices"
	"testing"

	"github.com/cilium/ebpf"
)

// jumboPayload makes packets that lie in three buffers at XDP.
const jumboPayload = 8900

// runJumbo runs the XDP program on a packet of several buffers.
func (tr *trial) runJumbo(device string, packet []byte) Result {
	tr.Helper()
	var context [xdpSize]byte
	binary.NativeEndian.PutUint32(context[xdpDataEnd:], uint32(len(packet)))
	binary.NativeEndian.PutUint32(context[xdpIfindex:], uint32(tr.Device(device).Index))
	out := make([]byte, len(packet)+growth)
	options := ebpf.RunOptions{Data: packet, DataOut: out, Context: context[:]}
	code, err := NodeXDP.of(tr.Programs).Run(&options)
	tr.must(err)
	return Result{NodeXDP.verdict(code), options.DataOut}
}

// jumbo makes a packet a large one.
func (f Frame) jumbo() Frame {
	f.Payload = slices.Repeat([]byte("jumbo"), jumboPayload/5)
	return f
}

// Packets of a large MTU are in several buffers at XDP, of which a program sees the first. To a backend here they are
// translated there; to one elsewhere they are left to tc, with their flow: not every driver can send them.
func TestPacketsInSeveralBuffers(t *testing.T) {
	onlyXDP := cases{programs: []Program{NodeXDP}}
	t.Run("to a local backend", func(t *testing.T) {
		forEach(t, onlyXDP, func(tr *trial) {
			in, translated := tr.toLocal()
			tr.establish(in, translated)
			sent := in.later().jumbo()
			result := tr.runJumbo("eth0", sent.Bytes())
			tr.must(tr.model.Check(NodeXDP, tr.Device("eth0"), sent.Bytes(), result))
			tr.compare(result, Pass, translated.later().jumbo().Bytes())
			if err := VerifyChecksums(result.Packet, true); err != nil {
				tr.Error(err)
			}
		})
	})
	t.Run("to a remote backend", func(t *testing.T) {
		forEach(t, onlyXDP, func(tr *trial) {
			in, translated := tr.toRemote()
			tr.establish(in, translated)
			sent := in.later().jumbo()
			result := tr.runJumbo("eth0", sent.Bytes())
			tr.compare(result, Pass, sent.Bytes())
			tr.model.counters.XdpPassedUp++
		})
	})
	t.Run("shorter than they say", func(t *testing.T) {
		forEach(t, onlyXDP, func(tr *trial) {
			in, translated := tr.toLocal()
			tr.establish(in, translated)
			sent := in.later().jumbo().Bytes()
			cut := sent[:len(sent)-1]
			result := tr.runJumbo("eth0", cut)
			if result.Verdict != Pass || !bytes.Equal(result.Packet, cut) {
				tr.Errorf("the verdict is %s, and the packet is not as it came", result.Verdict)
			}
		})
	})
}
