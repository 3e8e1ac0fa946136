package uki

import "strings"

// The texts of .sbat (https://github.com/rhboot/shim/blob/main/SBAT.md): the first line
// names the format, the last one revokes UKIs as such.
const (
	sbatHead = "sbat,1,SBAT Version,sbat,1,https://github.com/rhboot/shim/blob/main/SBAT.md"
	sbatUKI  = "uki,1,UKI,uki,1,https://uapi-group.org/specifications/specs/unified_kernel_image/"
)

// mergeSBAT joins the lines of the parts of a UKI, so that each of them can be revoked.
// A part whose text does not begin as such texts do is left out, as ukify does.
func mergeSBAT(parts ...string) string {
	lines := []string{sbatHead}
	for _, part := range parts {
		if list := strings.Split(strings.TrimSuffix(part, "\n"), "\n"); strings.HasPrefix(list[0], "sbat,") {
			lines = append(lines, list[1:]...)
		}
	}
	return strings.Join(append(lines, sbatUKI), "\n") + "\n\x00"
}
