package surroundings

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/weir-lb/weir/controlplane/compile"
)

// chain names a base chain of nftables; those of iptables-nft are among them.
type chain struct{ family, table, name string }

// policy is what a chain at the forward hook does with packets that none of its rules has decided on.
type policy struct {
	drop    bool
	rules   uint32
	counted bool   // the kernel counts what meets the policy: so it is with iptables-nft
	packets uint64 // that have met it
}

// drops is what is known of a policy that drops.
type drops struct {
	packets uint64    // when it was last looked at
	last    time.Time // when the number had grown
}

// families are those of tables whose chains see packets that are forwarded.
var families = map[uint8]string{unix.NFPROTO_IPV4: "ip", unix.NFPROTO_IPV6: "ip6", unix.NFPROTO_INET: "inet"}

// policies tells which chains drop what is forwarded. That a policy is drop is quite usual: others put rules before it. So
// it is told of where it has dropped something lately, or where there are no rules at all.
func (c *Checker) policies(now time.Time) ([]compile.Problem, error) {
	chains, err := forwardChains()
	if err != nil {
		return nil, fmt.Errorf("list netfilter's chains: %w", err)
	}
	known := c.drops
	c.drops = map[chain]drops{}
	var problems []compile.Problem
	for chain, policy := range chains {
		if !policy.drop {
			continue
		}
		what := known[chain]
		if _, before := known[chain]; before && policy.packets > what.packets {
			what.last = now
		}
		what.packets = policy.packets
		c.drops[chain] = what
		switch {
		case policy.rules == 0:
			problems = append(problems, dropping(chain, "it has no rules, and its policy is drop"))
		case policy.counted && now.Sub(what.last) < dropsCount:
			problems = append(problems, dropping(chain, "its policy is drop, and has dropped packets within the last minutes"))
		}
	}
	return problems, nil
}

func dropping(c chain, what string) compile.Problem {
	return compile.Problem{
		Object: "Node", Reason: "ForwardDropped",
		Message: fmt.Sprintf("netfilter's table %s %s, chain %s: %s; what Services forward to pods passes there: accept it",
			c.family, c.table, c.name, what),
	}
}

// What the kernel calls the parts of a chain (linux/netfilter/nf_tables.h).
const (
	msgGetChain      = unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_GETCHAIN
	attrTable        = unix.NFTA_CHAIN_TABLE
	attrName         = unix.NFTA_CHAIN_NAME
	attrHook         = unix.NFTA_CHAIN_HOOK
	attrPolicy       = unix.NFTA_CHAIN_POLICY
	attrUse          = unix.NFTA_CHAIN_USE
	attrCounters     = unix.NFTA_CHAIN_COUNTERS
	attrHookNumber   = unix.NFTA_HOOK_HOOKNUM
	attrCountPackets = unix.NFTA_COUNTER_PACKETS
	headerLength     = 4 // struct nfgenmsg
	verdictDrop      = 0 // NF_DROP
)

// forwardChains lists the base chains at the forward hook. A kernel without nftables has none.
func forwardChains() (map[chain]policy, error) {
	connection, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return nil, err
	}
	defer connection.Close()
	answers, err := connection.Execute(netlink.Message{
		Header: netlink.Header{Type: msgGetChain, Flags: netlink.Request | netlink.Dump},
		Data:   []byte{unix.NFPROTO_UNSPEC, 0, 0, 0},
	})
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	chains := map[chain]policy{}
	for _, answer := range answers {
		if len(answer.Data) < headerLength || families[answer.Data[0]] == "" {
			continue
		}
		name, p, forward, err := readChain(answer.Data[headerLength:])
		if err != nil {
			return nil, err
		}
		if name.family = families[answer.Data[0]]; forward {
			chains[name] = p
		}
	}
	return chains, nil
}

// readChain reads what the kernel says of a chain.
func readChain(attributes []byte) (name chain, p policy, forward bool, err error) {
	decoder, err := netlink.NewAttributeDecoder(attributes)
	if err != nil {
		return name, p, false, err
	}
	decoder.ByteOrder = binary.BigEndian
	for decoder.Next() {
		switch decoder.Type() {
		case attrTable:
			name.table = decoder.String()
		case attrName:
			name.name = decoder.String()
		case attrHook:
			decoder.Nested(func(hook *netlink.AttributeDecoder) error {
				for hook.Next() {
					forward = forward || hook.Type() == attrHookNumber && hook.Uint32() == unix.NF_INET_FORWARD
				}
				return nil
			})
		case attrPolicy:
			p.drop = decoder.Uint32() == verdictDrop
		case attrUse:
			p.rules = decoder.Uint32()
		case attrCounters:
			p.counted = true
			decoder.Nested(func(counter *netlink.AttributeDecoder) error {
				for counter.Next() {
					if counter.Type() == attrCountPackets {
						p.packets = counter.Uint64()
					}
				}
				return nil
			})
		}
	}
	return name, p, forward, decoder.Err()
}
