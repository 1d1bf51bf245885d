package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// Image is what `make image` builds, in a storage of its own.
type Image struct {
	Root string // directory with its files

	dir       string
	container string
}

// imageName is what the image is called in its storage.
const imageName = "localhost/weir:lab"

// BuildImage builds the image by the Makefile, as people do, and lays out its files. dir is for the storage.
func BuildImage(dir, repository string) (*Image, error) {
	image := &Image{dir: dir}
	if err := image.writeStorage(); err != nil {
		return nil, err
	}
	if _, err := image.run("make", "-C", repository, "image", "IMAGE="+imageName); err != nil {
		return nil, err
	}
	var err error
	if image.container, err = image.run("buildah", "from", "--pull-never", imageName); err != nil {
		return nil, err
	}
	image.Root, err = image.run("buildah", "mount", image.container)
	return image, err
}

// writeStorage says where images are stored: plain directories, which need no overlay in an overlay.
func (i *Image) writeStorage() error {
	config := fmt.Sprintf("[storage]\ndriver = \"vfs\"\ngraphroot = %q\nrunroot = %q\n", filepath.Join(i.dir, "images"), filepath.Join(i.dir, "run"))
	return os.WriteFile(i.storage(), []byte(config), 0o644)
}

func (i *Image) storage() string { return filepath.Join(i.dir, "storage.conf") }

func (i *Image) run(name string, args ...string) (string, error) {
	cmd := exec.Command(name, args...)
	cmd.Env = append(os.Environ(), "CONTAINERS_STORAGE_CONF="+i.storage())
	var stderr strings.Builder
	cmd.Stderr = &stderr
	output, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%s %s: %w: %s%s", name, strings.Join(args, " "), err, output, stderr.String())
	}
	return strings.TrimSpace(string(output)), nil
}

// Remove removes what Build has stored. No container of it may run.
func (i *Image) Remove() error {
	_, err := i.run("buildah", "rm", i.container)
	if err == nil {
		_, err = i.run("buildah", "rmi", "--all")
	}
	return err
}
