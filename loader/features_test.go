package loader

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf/asm"
)

// TestProbe holds the clock's tick against the jiffies that the kernel counts.
func TestProbe(t *testing.T) {
	features, err := Probe()
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%+v", features)
	start := time.Now()
	first := readJiffies(t)
	time.Sleep(time.Second)
	rate := float64(readJiffies(t)-first) / time.Since(start).Seconds()
	if hz := float64(features.JiffiesPerSecond); rate < 0.9*hz || rate > 1.1*hz {
		t.Errorf("%v jiffies a second, and the kernel counts %.1f", hz, rate)
	}
}

// Every kernel has the addition that a swap would be without its immediate value.
func TestProbeAsksForSwap(t *testing.T) {
	const swap = 0xf1 // BPF_CMPXCHG of the UAPI
	var code bytes.Buffer
	if err := swapWord().Marshal(&code, binary.LittleEndian); err != nil {
		t.Fatal(err)
	}
	for ins := code.Bytes(); len(ins) != 0; ins = ins[asm.InstructionSize:] {
		if immediate := binary.LittleEndian.Uint32(ins[4:]); immediate == swap {
			return
		}
	}
	t.Errorf("the kernel is asked for % x", code.Bytes())
}

// readJiffies returns the jiffies that the kernel shows.
func readJiffies(t *testing.T) uint64 {
	t.Helper()
	file, err := os.Open("/proc/timer_list")
	if errors.Is(err, os.ErrNotExist) {
		t.Skip("this kernel shows no jiffies")
	}
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	for lines := bufio.NewScanner(file); lines.Scan(); {
		var jiffies uint64
		if n, _ := fmt.Sscanf(strings.TrimSpace(lines.Text()), "jiffies: %d", &jiffies); n == 1 {
			return jiffies
		}
	}
	t.Skip("this kernel shows no jiffies")
	return 0
}
