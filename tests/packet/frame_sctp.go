package packet

import (
	"encoding/binary"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
)

// SCTPFields are the parts of an SCTP packet that tests vary.
type SCTPFields struct {
	Tag         uint32
	Flags       uint8  // of the first chunk
	Chunk       uint8  // type of the first chunk, in which the payload is
	InitiateTag uint32 // of an INIT or INIT ACK, before the payload
}

// sctpLayer is the common header with the head of the first chunk.
type sctpLayer struct{ frame Frame }

// LayerType is of gopacket.SerializableLayer.
func (sctpLayer) LayerType() gopacket.LayerType { return layers.LayerTypeSCTP }

// SerializeTo is of gopacket.SerializableLayer.
func (s sctpLayer) SerializeTo(packet gopacket.SerializeBuffer, options gopacket.SerializeOptions) error {
	fields := s.frame.SCTP
	chunk := []byte{fields.Chunk, fields.Flags, 0, 0}
	if fields.Chunk == sctpInit || fields.Chunk == sctpInitAck {
		chunk = binary.BigEndian.AppendUint32(chunk, fields.InitiateTag)
	}
	binary.BigEndian.PutUint16(chunk[2:], uint16(len(chunk)+len(packet.Bytes())))
	head, err := packet.PrependBytes(len(chunk))
	if err != nil {
		return err
	}
	copy(head, chunk)
	header := &layers.SCTP{
		SrcPort: layers.SCTPPort(s.frame.From.Port()), DstPort: layers.SCTPPort(s.frame.To.Port()),
		VerificationTag: fields.Tag,
	}
	return header.SerializeTo(packet, options)
}
