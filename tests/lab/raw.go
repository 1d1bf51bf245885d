package lab

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"strings"
	"time"

	"github.com/weir-lb/weir/controlplane/compile"
)

// AskRaw asks by UDP who is there, with a raw socket: no hook of the kernel's UDP sockets sees the question.
func (h *Host) AskRaw(from, to netip.AddrPort) (answer Answer, err error) {
	question := fmt.Sprintf("who-%x", rand.Uint64())
	frame, err := udpFrame(make(net.HardwareAddr, 6), make(net.HardwareAddr, 6), from, to, question+"\n")
	if err != nil {
		return Answer{}, fmt.Errorf("build a datagram: %w", err)
	}
	// A socket that nobody reads holds the port: else the kernel refuses the answer, too.
	held, err := h.Dial(compile.UDP, from, to)
	if err != nil {
		return Answer{}, err
	}
	defer held.Close()
	raw, err := h.dialRaw("udp", from.Addr(), to.Addr())
	if err != nil {
		return Answer{}, err
	}
	defer raw.Close()
	if _, err := raw.Write(frame[len(frame)-8-len(question)-1:]); err != nil {
		return Answer{}, err
	}
	return h.readRaw(raw, to, question)
}

// readRaw waits for the answer to a question. A raw socket gets whatever the address sends.
func (h *Host) readRaw(raw *net.IPConn, from netip.AddrPort, question string) (Answer, error) {
	if err := raw.SetReadDeadline(time.Now().Add(requestLimit)); err != nil {
		return Answer{}, err
	}
	buffer := make([]byte, 2048)
	for {
		n, _, err := raw.ReadFromIP(buffer)
		if err != nil {
			return Answer{}, fmt.Errorf("%s asks %s by a raw socket: %w", h.Role, from, err)
		}
		port := uint16(buffer[0])<<8 | uint16(buffer[1])
		if n > 8 && port == from.Port() && strings.Contains(string(buffer[8:n]), question) {
			return parseAnswer(string(buffer[8:n]))
		}
	}
}

// SendRaw sends a packet of an IP protocol, by its name or number.
func (h *Host) SendRaw(protocol string, from, to netip.Addr, payload []byte) error {
	raw, err := h.dialRaw(protocol, from, to)
	if err != nil {
		return err
	}
	_, err = raw.Write(payload)
	return errors.Join(err, raw.Close())
}

func (h *Host) dialRaw(protocol string, from, to netip.Addr) (raw *net.IPConn, err error) {
	network := "ip4:" + protocol
	if to.Is6() {
		network = "ip6:" + protocol
	}
	err = h.Do(func() (err error) {
		raw, err = net.DialIP(network, &net.IPAddr{IP: from.AsSlice()}, &net.IPAddr{IP: to.AsSlice()})
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("open a raw socket of %s: %w", h.Role, err)
	}
	return raw, nil
}
