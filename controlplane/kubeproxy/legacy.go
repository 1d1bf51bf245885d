package kubeproxy

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Options of getsockopt that legacy iptables reads its tables with, the same numbers for both families; of
// linux/netfilter_ipv4/ip_tables.h.
const (
	getInfo    = 64
	getEntries = 65
	// infoSize is of struct ipt_getinfo, which begins with the table's name and ends with the size of the entries.
	infoSize = 84
	// entriesHeader is before the entries: the name, their size, and room to align.
	entriesHeader = 40
	// tableNameSize is of a table's name.
	tableNameSize = 32
)

// legacyTables lists the tables of legacy iptables that have chains of kube-proxy. Tables that are not there are not asked
// about: that would make them.
func legacyTables() ([]string, error) {
	var tables []string
	for _, family := range []struct {
		name, list string
		domain     int
		level      int
	}{
		{"ip", "/proc/thread-self/net/ip_tables_names", unix.AF_INET, unix.SOL_IP},
		{"ip6", "/proc/thread-self/net/ip6_tables_names", unix.AF_INET6, unix.SOL_IPV6},
	} {
		names, err := os.ReadFile(family.list)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("list the tables of legacy iptables: %w", err)
		}
		for _, name := range strings.Fields(string(names)) {
			entries, err := legacyEntries(family.domain, family.level, name)
			if err != nil {
				return nil, fmt.Errorf("read table %s %s of legacy iptables: %w", family.name, name, err)
			}
			if bytes.Contains(entries, []byte("KUBE-SERVICES\x00")) {
				tables = append(tables, family.name+" "+name)
			}
		}
	}
	return tables, nil
}

// legacyEntries returns a table's rules as the kernel has them, with the names of its chains among them.
func legacyEntries(domain, level int, table string) ([]byte, error) {
	socket, err := unix.Socket(domain, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(socket)
	info := make([]byte, infoSize)
	copy(info[:tableNameSize-1], table)
	if err := getsockopt(socket, level, getInfo, info); err != nil {
		return nil, err
	}
	size := binary.NativeEndian.Uint32(info[infoSize-4:])
	entries := make([]byte, entriesHeader+size)
	copy(entries[:tableNameSize-1], table)
	binary.NativeEndian.PutUint32(entries[tableNameSize:], size)
	return entries, getsockopt(socket, level, getEntries, entries)
}

// getsockopt reads an option into a buffer, which also says what is asked for.
func getsockopt(socket, level, option int, buffer []byte) error {
	size := uint32(len(buffer))
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(socket), uintptr(level), uintptr(option),
		uintptr(unsafe.Pointer(&buffer[0])), uintptr(unsafe.Pointer(&size)), 0)
	if errno != 0 {
		return errno
	}
	return nil
}
