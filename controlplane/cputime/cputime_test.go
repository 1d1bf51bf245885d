package cputime

import (
	"errors"
	"testing"
	"time"
)

func TestOf(t *testing.T) {
	const while = 100 * time.Millisecond
	failed := errors.New("failed")
	waited, err := Of(func() error {
		time.Sleep(while)
		return failed
	})
	if waited > while/4 || !errors.Is(err, failed) {
		t.Errorf("waiting took %s of CPU time: %v", waited, err)
	}
	worked, err := Of(func() error {
		for begin := Thread(); Thread()-begin < while; {
		}
		return nil
	})
	if worked < while || err != nil {
		t.Errorf("working took %s of CPU time: %v", worked, err)
	}
}
