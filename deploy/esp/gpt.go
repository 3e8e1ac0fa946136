package esp

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	"strings"
	"unicode/utf16"
)

// Partition types, in the spelling of [Partition].
const (
	TypeESP      = "c12a7328-f81f-11d2-ba4b-00a0c93ec93b"
	TypeXBOOTLDR = "bc13c2ff-59e6-4262-a352-b275fd6f7172"
)

// Partition is one used entry of a GUID partition table.
type Partition struct {
	Number int    // 1 is the first, as in the kernel's device names
	Type   string // GUID, lower case
	UUID   string // GUID, lower case
	Start  int64  // byte on the disk
	Size   int64  // bytes
	Name   string
}

// GPTError reports a disk whose partition table cannot be used.
type GPTError struct {
	Field  string // name in the UEFI specification
	Detail string // what was found and what was expected
}

func (e *GPTError) Error() string {
	return fmt.Sprintf("partition table: %s: %s", e.Field, e.Detail)
}

const (
	gptHeaderSize = 92
	gptMaxEntries = 1024
)

// ReadGPT returns the used partitions of the disk r, whose logical sectors have
// sector bytes, from the primary table. A disk without one, or with a damaged
// one, is a *GPTError: the backup table is left to repair tools.
func ReadGPT(r io.ReaderAt, sector int64) ([]Partition, error) {
	if sector < 512 || sector > 65536 || sector&(sector-1) != 0 {
		return nil, &GPTError{"sector", fmt.Sprintf("size %d bytes, want a power of two from 512 to 65536", sector)}
	}
	var h [gptHeaderSize]byte
	if _, err := r.ReadAt(h[:], sector); err != nil {
		return nil, fmt.Errorf("read partition table header: %w", err)
	}
	if sig := string(h[:8]); sig != "EFI PART" {
		return nil, &GPTError{"Signature", fmt.Sprintf("%q, want %q", sig, "EFI PART")}
	}
	le := binary.LittleEndian
	if size := le.Uint32(h[12:]); size != gptHeaderSize {
		return nil, &GPTError{"HeaderSize", fmt.Sprintf("%d, want %d", size, gptHeaderSize)}
	}
	want := le.Uint32(h[16:])
	clear(h[16:20])
	if got := crc32.ChecksumIEEE(h[:]); got != want {
		return nil, &GPTError{"HeaderCRC32", fmt.Sprintf("%#x, want %#x", got, want)}
	}
	lba, count, size := int64(le.Uint64(h[72:])), le.Uint32(h[80:]), le.Uint32(h[84:])
	switch {
	case size < 128 || size > 4096 || size%128 != 0:
		return nil, &GPTError{"SizeOfPartitionEntry", fmt.Sprintf("%d, want a multiple of 128 up to 4096", size)}
	case count > gptMaxEntries:
		return nil, &GPTError{"NumberOfPartitionEntries", fmt.Sprintf("%d, want at most %d", count, gptMaxEntries)}
	case lba < 2 || lba > 1<<40:
		return nil, &GPTError{"PartitionEntryLBA", fmt.Sprintf("%d, want 2 or more", lba)}
	}
	table := make([]byte, int(count)*int(size))
	if _, err := r.ReadAt(table, lba*sector); err != nil {
		return nil, fmt.Errorf("read partition table entries: %w", err)
	}
	if got, want := crc32.ChecksumIEEE(table), le.Uint32(h[88:]); got != want {
		return nil, &GPTError{"PartitionEntryArrayCRC32", fmt.Sprintf("%#x, want %#x", got, want)}
	}
	var out []Partition
	for i := range int(count) {
		e := table[i*int(size):][:128]
		if [16]byte(e[:16]) == ([16]byte{}) {
			continue
		}
		first, last := le.Uint64(e[32:]), le.Uint64(e[40:])
		if last < first || last > 1<<50 {
			return nil, &GPTError{"EndingLBA", fmt.Sprintf("partition %d: %d, want %d or more", i+1, last, first)}
		}
		out = append(out, Partition{
			Number: i + 1,
			Type:   guid(e[:16]),
			UUID:   guid(e[16:32]),
			Start:  int64(first) * sector,
			Size:   int64(last-first+1) * sector,
			Name:   partitionName(e[56:128]),
		})
	}
	return out, nil
}

// guid formats the mixed-endian bytes of a GUID.
func guid(b []byte) string {
	le := binary.LittleEndian
	return fmt.Sprintf("%08x-%04x-%04x-%x-%x", le.Uint32(b), le.Uint16(b[4:]), le.Uint16(b[6:]), b[8:10], b[10:16])
}

func partitionName(b []byte) string {
	units := make([]uint16, 0, len(b)/2)
	for ; len(b) > 0; b = b[2:] {
		u := binary.LittleEndian.Uint16(b)
		if u == 0 {
			break
		}
		units = append(units, u)
	}
	return strings.ToValidUTF8(string(utf16.Decode(units)), "?")
}
