package loader

import "hash/crc32"

// crc32cTable is crc32c_zeros of bpf/crc32c.h: by power, nibble and value, what a CRC32c with nothing but that nibble
// becomes by 2^power bytes of zero.
type crc32cTable [16][8][16]uint32

func newCRC32CTable() *crc32cTable {
	var t crc32cTable
	bytes := crc32.MakeTable(crc32.Castagnoli)
	for power := range t {
		for nibble := range t[power] {
			for value := range t[power][nibble] {
				sum := uint32(value) << (4 * nibble)
				if power == 0 {
					t[power][nibble][value] = bytes[byte(sum)] ^ sum>>8
				} else { // twice as many are half of them, twice
					t[power][nibble][value] = t.pass(power-1, t.pass(power-1, sum))
				}
			}
		}
	}
	return &t
}

// pass returns a sum after 2^power more bytes of zero.
func (t *crc32cTable) pass(power int, sum uint32) (passed uint32) {
	for nibble := range t[power] {
		passed ^= t[power][nibble][sum>>(4*nibble)&15]
	}
	return passed
}
