package maps

import "encoding/binary"

// hashWords is hash_words of bpf/hash.h: of a record in native order, in whole words.
func hashWords(record []byte, hash uint32) uint32 {
	for i := 0; i+4 <= len(record); i += 4 {
		hash = (hash ^ binary.NativeEndian.Uint32(record[i:])) * 0x9E3779B1
		hash ^= hash >> 15
	}
	return hash
}
