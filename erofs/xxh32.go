package erofs

import "math/bits"

// xxh32 is the 32-bit xxHash of s, which the kernel's xattr name filter uses.
func xxh32(s string, seed uint32) uint32 {
	const p1, p2, p3, p4, p5 uint32 = 2654435761, 2246822519, 3266489917, 668265263, 374761393
	n := uint32(len(s))
	var h uint32
	if len(s) >= 16 {
		v1, v2, v3, v4 := seed+p1+p2, seed+p2, seed, seed-p1
		for len(s) >= 16 {
			v1 = bits.RotateLeft32(v1+le32(s)*p2, 13) * p1
			v2 = bits.RotateLeft32(v2+le32(s[4:])*p2, 13) * p1
			v3 = bits.RotateLeft32(v3+le32(s[8:])*p2, 13) * p1
			v4 = bits.RotateLeft32(v4+le32(s[12:])*p2, 13) * p1
			s = s[16:]
		}
		h = bits.RotateLeft32(v1, 1) + bits.RotateLeft32(v2, 7) + bits.RotateLeft32(v3, 12) + bits.RotateLeft32(v4, 18)
	} else {
		h = seed + p5
	}
	h += n
	for len(s) >= 4 {
		h = bits.RotateLeft32(h+le32(s)*p3, 17) * p4
		s = s[4:]
	}
	for i := range len(s) {
		h = bits.RotateLeft32(h+uint32(s[i])*p5, 11) * p1
	}
	h = (h ^ h>>15) * p2
	h = (h ^ h>>13) * p3
	return h ^ h>>16
}

func le32(s string) uint32 {
	_ = s[3]
	return uint32(s[0]) | uint32(s[1])<<8 | uint32(s[2])<<16 | uint32(s[3])<<24
}
