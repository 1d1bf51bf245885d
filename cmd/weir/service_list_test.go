package main

import (
	"testing"
)

func TestNamed(t *testing.T) {
	for given, want := range map[string]bool{
		"default/web:http/TCP/IPv4": true,
		"default/web:http/TCP":      true,
		"default/web:http":          true,
		"default/web":               true,
		"default":                   true,
		"web":                       true,
		"web:http/TCP":              true,
		"":                          false,
		"we":                        false,
		"default/we":                false,
		"web:htt":                   false,
		"http":                      false,
		"other/web":                 false,
	} {
		if got := named("default/web:http/TCP/IPv4", given); got != want {
			t.Errorf("%q names default/web:http/TCP/IPv4: %t", given, got)
		}
	}
}

func TestAddRates(t *testing.T) {
	before := []serviceView{{
		Name: "default/web:/TCP/IPv4", Traffic: trafficView{Flows: 10, Packets: 100, Bytes: 1000},
		Backends: []backendView{{Address: "10.0.0.1:80", Traffic: trafficView{Flows: 10}}},
	}}
	after := []serviceView{
		{
			Name: "default/web:/TCP/IPv4", Traffic: trafficView{Flows: 14, Packets: 160, Bytes: 900, ReplyBytes: 2},
			Backends: []backendView{{Address: "10.0.0.1:80", Traffic: trafficView{Flows: 12}}, {Address: "10.0.0.2:80"}},
		},
		{Name: "default/new:/TCP/IPv4"},
	}
	addRates(before, after, 2)
	want := rateView{Flows: 2, Packets: 30, Bytes: 0, ReplyBytes: 1} // fewer bytes than before: another's counters
	if difference := diff(&want, after[0].Rate); difference != "" {
		t.Error(difference)
	}
	if got := after[0].Backends[0].Rate; got == nil || got.Flows != 1 {
		t.Errorf("the backend's rate is %+v, want 1 flow per second", got)
	}
	if got := after[0].Backends[1].Rate; got != nil {
		t.Errorf("a backend that has just come has the rate %+v", got)
	}
	if got := after[1].Rate; got != nil {
		t.Errorf("a service that has just come has the rate %+v", got)
	}
}

func TestQuantity(t *testing.T) {
	for _, test := range []struct {
		n    float64
		want string
	}{
		{0, "0"},
		{7, "7"},
		{0.25, "0.25"},
		{12.34, "12.3"},
		{999, "999"},
		{1000, "1k"},
		{1234, "1.23k"},
		{123456, "123k"},
		{999600, "1.00M"},
		{5e9, "5G"},
		{2e15, "2P"},
	} {
		if got := quantity(test.n, ""); got != test.want {
			t.Errorf("%g is shown as %s, want %s", test.n, got, test.want)
		}
	}
}
