package loader

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// driver is what ethtool says of a device's driver.
type driver struct {
	name      string
	queues    int // for sending, in use
	maxQueues int // for sending, that the device has; 0: not known
}

// ethtoolChannels is struct ethtool_channels of linux/ethtool.h.
type ethtoolChannels struct {
	command                             uint32
	maxRX, maxTX, maxOther, maxCombined uint32
	rx, tx, other, combined             uint32
}

// ifreqPointer is struct ifreq of linux/if.h with ifr_data.
type ifreqPointer struct {
	name [unix.IFNAMSIZ]byte
	data unsafe.Pointer
	_    [16]byte
}

// readDriver asks the driver of a device (SIOCETHTOOL). Not every driver counts queues.
func readDriver(device string) (driver, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return driver{}, fmt.Errorf("open a socket: %w", err)
	}
	defer unix.Close(fd)
	info, err := unix.IoctlGetEthtoolDrvinfo(fd, device)
	if err != nil {
		return driver{}, fmt.Errorf("ask for the driver of %s: %w", device, err)
	}
	found := driver{name: unix.ByteSliceToString(info.Driver[:])}
	channels := ethtoolChannels{command: unix.ETHTOOL_GCHANNELS}
	request := ifreqPointer{data: unsafe.Pointer(&channels)}
	copy(request.name[:unix.IFNAMSIZ-1], device)
	_, _, failed := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&request)))
	if failed == 0 {
		found.queues, found.maxQueues = int(channels.tx+channels.combined), int(max(channels.maxTX, channels.maxCombined))
	}
	return found, nil
}
