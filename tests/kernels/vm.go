// Package kernels runs Weir's tests on other kernels than this machine's, in virtual machines without hardware support.
package kernels

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// ErrUnfinished is that a machine ended before its command did.
var ErrUnfinished = errors.New("the machine ended before its command")

// Kernel is one that a package of a distribution has been unpacked to.
type Kernel struct {
	Version string
	Image   string // the file to boot
	Modules string // the directory of its modules
}

// Kernels returns those whose packages have been unpacked to the subdirectories of a directory.
func Kernels(directory string) ([]Kernel, error) {
	directory, err := filepath.Abs(directory) // machines have other working directories
	if err != nil {
		return nil, err
	}
	images, err := filepath.Glob(filepath.Join(directory, "*/boot/vmlinuz-*"))
	if err != nil {
		return nil, err
	}
	var kernels []Kernel
	for _, image := range images {
		version := strings.TrimPrefix(filepath.Base(image), "vmlinuz-")
		root := filepath.Dir(filepath.Dir(image))
		modules := filepath.Join(root, "lib/modules", version)
		if _, err := os.Stat(modules); err != nil {
			modules = filepath.Join(root, "usr/lib/modules", version)
		}
		kernels = append(kernels, Kernel{Version: version, Image: image, Modules: modules})
	}
	return kernels, nil
}

// Machine is a virtual machine that is booted for one command.
type Machine struct {
	Kernel Kernel
	Guest  string // its first process: the program of the package guest
	Memory int    // MiB
	CPUs   int
}

// order is what the first process reads.
type order struct {
	Command []string
	Modules string
}

// Run boots the machine, runs a command among this machine's files, to which nothing is written, and copies what the
// machine prints. It returns the command's exit status. Files that booting needs are made in the scratch directory.
func (m Machine) Run(ctx context.Context, scratch string, output io.Writer, command ...string) (int, error) {
	initial, err := m.initialFiles(scratch, order{Command: command, Modules: m.Kernel.Modules})
	if err != nil {
		return 0, fmt.Errorf("make the initial file system: %w", err)
	}
	qemu := exec.CommandContext(ctx, "qemu-system-x86_64", "-machine", "q35", "-accel", "tcg,thread=multi", "-cpu", "max",
		"-smp", fmt.Sprint(m.CPUs), "-m", fmt.Sprint(m.Memory), "-nodefaults", "-no-reboot", "-display", "none", "-serial", "stdio",
		"-virtfs", "local,path=/,mount_tag=host,security_model=none,readonly=on,multidevs=remap",
		"-kernel", m.Kernel.Image, "-initrd", initial, "-append", "console=ttyS0 quiet panic=-1 mitigations=off")
	var errorOutput bytes.Buffer
	qemu.Stderr = &errorOutput
	console, err := qemu.StdoutPipe()
	if err != nil {
		return 0, err
	}
	if err := qemu.Start(); err != nil {
		return 0, fmt.Errorf("start the machine: %w", err)
	}
	status, found := copyConsole(output, console)
	if err := qemu.Wait(); err != nil {
		return 0, fmt.Errorf("run the machine: %w: %s", err, errorOutput.String())
	}
	if !found {
		return 0, ErrUnfinished
	}
	return status, nil
}

// copyConsole copies what a machine prints, up to the exit status of its command.
func copyConsole(output io.Writer, console io.Reader) (status int, found bool) {
	lines := bufio.NewReader(console)
	for {
		line, err := lines.ReadString('\n')
		line = strings.TrimRight(line, "\r\n")
		if _, failed := fmt.Sscanf(line, "guest: exit status %d", &status); failed == nil {
			found = true
		} else if line != "" {
			fmt.Fprintln(output, line)
		}
		if err != nil {
			return status, found
		}
	}
}

// initialFiles writes the file system that the kernel begins with, and returns its name.
func (m Machine) initialFiles(scratch string, order order) (string, error) {
	tree := filepath.Join(scratch, "initial")
	for _, directory := range []string{"modules", "sbin", "proc", "dev"} {
		if err := os.MkdirAll(filepath.Join(tree, directory), 0o755); err != nil {
			return "", err
		}
	}
	what, err := json.Marshal(order)
	if err != nil {
		return "", err
	}
	if err := os.WriteFile(filepath.Join(tree, "order.json"), what, 0o600); err != nil {
		return "", err
	}
	if err := copyFile(filepath.Join(tree, "init"), m.Guest, 0o755); err != nil {
		return "", err
	}
	if err := os.Symlink("/init", filepath.Join(tree, "sbin/modprobe")); err != nil {
		return "", err
	}
	if err := m.copyModules(filepath.Join(tree, "modules")); err != nil {
		return "", err
	}
	archive := filepath.Join(scratch, "initial.cpio")
	pack := exec.Command("sh", "-c", "find . | cpio --quiet -o -H newc >"+archive)
	pack.Dir = tree
	return archive, runQuietly(pack)
}

// copyModules copies what mounting this machine's files needs, named in the order to load them.
func (m Machine) copyModules(to string) error {
	base := filepath.Join(m.Kernel.Modules, "../../..")
	if err := runQuietly(exec.Command("depmod", "-b", base, m.Kernel.Version)); err != nil {
		return err
	}
	list, err := exec.Command("modprobe", "-d", base, "-S", m.Kernel.Version, "-a", "--show-depends", "virtio_pci", "9pnet_virtio", "9p",
		"overlay").Output()
	if err != nil {
		return fmt.Errorf("list modules: %w", err)
	}
	copied := make(map[string]bool)
	for line := range strings.Lines(string(list)) {
		path, isModule := strings.CutPrefix(strings.TrimSpace(line), "insmod ")
		if !isModule || copied[path] {
			continue
		}
		copied[path] = true
		name := fmt.Sprintf("%02d-%s", len(copied), filepath.Base(path))
		if err := copyFile(filepath.Join(to, name), path, 0o644); err != nil {
			return err
		}
	}
	return nil
}

func copyFile(to, from string, mode os.FileMode) error {
	content, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, content, mode)
}

// runQuietly runs a command whose output matters where it fails.
func runQuietly(cmd *exec.Cmd) error {
	if output, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", strings.Join(cmd.Args, " "), err, output)
	}
	return nil
}
