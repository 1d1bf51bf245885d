package namespaces

import (
	"io/fs"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/weir-lb/weir/controlplane/compile"
)

// findCgroups returns the ids of the pods' cgroups below a root, by the pods' uids. The kubelet names them
// pod<uid>, and where systemd makes them, <parent>-pod<uid with underscores>.slice.
func findCgroups(root string, pods []compile.Pod) map[string]uint64 {
	found := map[string]uint64{}
	if len(pods) == 0 || root == "" {
		return found
	}
	_ = filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || !entry.IsDir() {
			return nil //nolint:nilerr // cgroups come and go
		}
		for _, pod := range pods {
			if pod.UID == "" || !isOfPod(entry.Name(), pod.UID) {
				continue
			}
			var stat unix.Stat_t
			if unix.Stat(path, &stat) == nil {
				found[pod.UID] = stat.Ino
			}
			return fs.SkipDir
		}
		return nil
	})
	return found
}

func isOfPod(name, uid string) bool {
	name = strings.TrimSuffix(name, ".slice")
	return strings.HasSuffix(name, "pod"+uid) || strings.HasSuffix(name, "pod"+strings.ReplaceAll(uid, "-", "_"))
}
