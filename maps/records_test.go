package maps

import (
	"net/netip"
	"testing"
)

func TestAddressesAreMapped(t *testing.T) {
	for _, text := range []string{"10.1.2.3", "fd00::1", "0.0.0.0", "::"} {
		want := netip.MustParseAddr(text)
		if got := AddressOf(want).Addr(); got != want {
			t.Errorf("%s comes back as %s", want, got)
		}
	}
	mapped := Address{Bytes: [16]uint8{10: 0xff, 11: 0xff, 12: 10, 13: 1, 14: 2, 15: 3}}
	if got := AddressOf(netip.MustParseAddr("10.1.2.3")); got != mapped {
		t.Errorf("10.1.2.3 is %v", got)
	}
	if !(Address{}).IsZero() || mapped.IsZero() {
		t.Error("IsZero")
	}
}

func TestTuplesHoldNetworkOrder(t *testing.T) {
	source, destination := netip.MustParseAddrPort("10.0.0.1:80"), netip.MustParseAddrPort("[fd00::2]:53")
	tuple := TupleOf(source, destination)
	if tuple.SourcePort != 80<<8 { // as little-endian machines read 0x0050 off the wire
		t.Errorf("port 80 is %#04x", tuple.SourcePort)
	}
	if tuple.SourceAddrPort() != source || tuple.DestinationAddrPort() != destination {
		t.Errorf("%v comes back as %v, %v", tuple, tuple.SourceAddrPort(), tuple.DestinationAddrPort())
	}
	if back := tuple.Reverse(); back != TupleOf(destination, source) {
		t.Errorf("reversed: %v", back)
	}
}

func TestFrontendSeal(t *testing.T) {
	address := netip.MustParseAddrPort("10.96.0.1:443")
	key := FrontendKeyOf(address, 6)
	if key.AddrPort() != address || key.Port != 443 || key.Protocol != 6 {
		t.Errorf("key of %s: %+v", address, key)
	}
	value := key.Seal(FrontendExternalIP, 7, 99)
	if value.Index() != 7 || value.Kind() != FrontendExternalIP || key.Generation(value) != 99 {
		t.Errorf("value %+v is of index %d, kind %d, generation %d", value, value.Index(), value.Kind(), key.Generation(value))
	}
	for _, other := range []FrontendKey{
		FrontendKeyOf(address, 17),
		FrontendKeyOf(netip.AddrPortFrom(address.Addr(), 444), 6),
		FrontendKeyOf(netip.MustParseAddrPort("10.96.0.2:443"), 6),
	} {
		if other.Generation(value) == 99 {
			t.Errorf("%+v opens the seal of %+v", other, key)
		}
	}
}
