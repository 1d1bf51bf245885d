// Command guest is the first process of a virtual machine that tests boot: it mounts the host's files, to which what is
// written here does not come, and runs one command among them.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	root = "/root" // where the host's files are
	path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
)

// Order is what is to be done: a file in the initial file system.
type Order struct {
	Command []string // with its arguments
	Modules string   // the directory of the kernel's modules on the host
}

func main() {
	if filepath.Base(os.Args[0]) == "modprobe" { // the kernel asks for a module
		fmt.Fprintln(os.Stderr, modprobe())
		os.Exit(1)
	}
	code, err := run()
	if err != nil {
		fmt.Println("guest:", err)
	}
	fmt.Printf("\nguest: exit status %d\n", code)
	unix.Sync()
	fmt.Println("guest:", unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF))
}

// run returns the exit status of the command.
func run() (int, error) {
	order, err := readOrder()
	if err != nil {
		return -1, err
	}
	for _, step := range []func() error{mountOwn, loadModules, mountHost, func() error { return linkModules(order.Modules) }} {
		if err := step(); err != nil {
			return -1, err
		}
	}
	if err := unix.Chroot(root); err != nil {
		return -1, fmt.Errorf("change to the host's files: %w", err)
	}
	if err := os.Setenv("PATH", path); err != nil {
		return -1, err
	}
	for _, words := range [][]string{{"ip", "link", "set", "lo", "up"}, {"modprobe", "-a", "tun"}} { // the latter for /dev/net/tun
		if err := command(words...).Run(); err != nil {
			return -1, fmt.Errorf("run %s: %w", strings.Join(words, " "), err)
		}
	}
	err = command(order.Command...).Run()
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		return exit.ExitCode(), nil
	}
	if err != nil {
		return -1, fmt.Errorf("run %s: %w", strings.Join(order.Command, " "), err)
	}
	return 0, nil
}

func readOrder() (Order, error) {
	var order Order
	content, err := os.ReadFile("/order.json")
	if err != nil {
		return order, fmt.Errorf("read what to run: %w", err)
	}
	if err := json.Unmarshal(content, &order); err != nil {
		return order, fmt.Errorf("read what to run: %w", err)
	}
	return order, nil
}

type mount struct{ source, target, kind, options string }

func mountAll(mounts []mount) error {
	for _, m := range mounts {
		if err := os.MkdirAll(m.target, 0o755); err != nil {
			return fmt.Errorf("make a directory to mount on: %w", err)
		}
		if err := unix.Mount(m.source, m.target, m.kind, 0, m.options); err != nil {
			return fmt.Errorf("mount %s on %s: %w", m.kind, m.target, err)
		}
	}
	return nil
}

// mountOwn mounts what reading modules needs.
func mountOwn() error {
	return mountAll([]mount{{"proc", "/proc", "proc", ""}, {"dev", "/dev", "devtmpfs", ""}})
}

// mountHost mounts the host's files beneath a layer that takes what is written, and over them what is this kernel's.
func mountHost() error {
	if err := mountAll([]mount{
		{"host", "/host", "9p", "trans=virtio,version=9p2000.L,cache=loose,msize=512000,ro"},
		{"layer", "/layer", "tmpfs", ""},
	}); err != nil {
		return err
	}
	for _, directory := range []string{"/layer/upper", "/layer/work"} {
		if err := os.Mkdir(directory, 0o755); err != nil {
			return err
		}
	}
	return mountAll([]mount{
		{"overlay", root, "overlay", "lowerdir=/host,upperdir=/layer/upper,workdir=/layer/work"},
		{"proc", root + "/proc", "proc", ""},
		{"sysfs", root + "/sys", "sysfs", ""},
		{"dev", root + "/dev", "devtmpfs", ""},
		{"devpts", root + "/dev/pts", "devpts", ""},
		{"run", root + "/run", "tmpfs", ""},
		{"shm", root + "/dev/shm", "tmpfs", ""},
		{"cgroup", root + "/sys/fs/cgroup", "cgroup2", ""},
	})
}

// loadModules loads those in the initial file system, in the order of their names.
func loadModules() error {
	names, err := filepath.Glob("/modules/*")
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := loadModule(name); err != nil {
			return fmt.Errorf("load module %s: %w", name, err)
		}
	}
	return nil
}

func loadModule(name string) error {
	const compressed = 4 // MODULE_INIT_COMPRESSED_FILE of the UAPI, Linux 5.17
	file, err := os.Open(name)
	if err != nil {
		return err
	}
	defer file.Close()
	flags := 0
	if !strings.HasSuffix(name, ".ko") {
		flags = compressed
	}
	return unix.FinitModule(int(file.Fd()), "", flags)
}

// linkModules puts the kernel's modules where modprobe looks for them.
func linkModules(modules string) error {
	at := filepath.Join(root, "lib/modules", filepath.Base(modules))
	if err := os.MkdirAll(filepath.Dir(at), 0o755); err != nil {
		return fmt.Errorf("make the directory of modules: %w", err)
	}
	if err := os.Symlink(modules, at); err != nil && !errors.Is(err, os.ErrExist) {
		return fmt.Errorf("link the modules: %w", err)
	}
	return nil
}

// modprobe becomes that of the host's files. The kernel calls it outside of them.
func modprobe() error {
	if err := unix.Chroot(root); err != nil {
		return err
	}
	if err := unix.Chdir("/"); err != nil {
		return err
	}
	return unix.Exec("/sbin/modprobe", os.Args, []string{"PATH=" + path})
}

// command returns a command with the output of this process.
func command(words ...string) *exec.Cmd {
	cmd := exec.Command(words[0], words[1:]...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = "/", os.Stdout, os.Stderr
	return cmd
}
