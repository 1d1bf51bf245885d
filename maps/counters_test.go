package maps

import "testing"

func TestSnakeCase(t *testing.T) {
	for name, want := range map[string]string{
		"DropSnatPortsExhausted": "drop_snat_ports_exhausted", "XdpPassedUp": "xdp_passed_up", "FlowNew": "flow_new",
	} {
		if got := snakeCase(name); got != want {
			t.Errorf("%s becomes %s, want %s", name, got, want)
		}
	}
}
