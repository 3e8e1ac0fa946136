package esp_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/cfsboot/cfsboot/deploy/esp"
)

// gptDisk makes the first sectors of a disk with an ESP and a root partition.
func gptDisk(sector int) []byte {
	le := binary.LittleEndian
	b := make([]byte, sector*2+128*128)
	table := b[2*sector:]
	put := func(i int, typ, uuid string, first, last uint64, name string) {
		e := table[i*128:]
		copy(e, mixedGUID(typ))
		copy(e[16:], mixedGUID(uuid))
		le.PutUint64(e[32:], first)
		le.PutUint64(e[40:], last)
		for j, c := range name {
			le.PutUint16(e[56+2*j:], uint16(c))
		}
	}
	put(0, esp.TypeESP, "00112233-4455-6677-8899-aabbccddeeff", 2048, 4095, "ESP")
	put(2, "4f68bce3-e8cd-4db1-96e7-fbcaf984b709", "0fc63daf-8483-4772-8e79-3d69d8477de4", 4096, 8191, "")
	h := b[sector:]
	copy(h, "EFI PART")
	le.PutUint32(h[8:], 0x10000)
	le.PutUint32(h[12:], 92)
	le.PutUint64(h[72:], 2)
	le.PutUint32(h[80:], 128)
	le.PutUint32(h[84:], 128)
	seal(b, sector)
	return b
}

func seal(b []byte, sector int) {
	le := binary.LittleEndian
	h := b[sector:]
	le.PutUint32(h[88:], crc32.ChecksumIEEE(b[2*sector:][:128*128]))
	le.PutUint32(h[16:], 0)
	le.PutUint32(h[16:], crc32.ChecksumIEEE(h[:92]))
}

func mixedGUID(s string) []byte {
	var raw []byte
	for i := 0; i < len(s); i++ {
		if s[i] != '-' {
			raw = append(raw, unhex(s[i])<<4|unhex(s[i+1]))
			i++
		}
	}
	for _, r := range [][2]int{{0, 4}, {4, 6}, {6, 8}} {
		for i, j := r[0], r[1]-1; i < j; i, j = i+1, j-1 {
			raw[i], raw[j] = raw[j], raw[i]
		}
	}
	return raw
}

func unhex(c byte) byte {
	if c >= 'a' {
		return c - 'a' + 10
	}
	return c - '0'
}

func TestReadGPT(t *testing.T) {
	for _, sector := range []int{512, 4096} {
		got, err := esp.ReadGPT(bytes.NewReader(gptDisk(sector)), int64(sector))
		if err != nil {
			t.Fatal(err)
		}
		s := int64(sector)
		want := []esp.Partition{
			{1, esp.TypeESP, "00112233-4455-6677-8899-aabbccddeeff", 2048 * s, 2048 * s, "ESP"},
			{3, "4f68bce3-e8cd-4db1-96e7-fbcaf984b709", "0fc63daf-8483-4772-8e79-3d69d8477de4", 4096 * s, 4096 * s, ""},
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("mismatch (-want +got):\n%s", d)
		}
	}
}

func TestReadGPTRejects(t *testing.T) {
	le := binary.LittleEndian
	for _, tc := range []struct {
		field string
		reCRC bool
		edit  func(b []byte)
	}{
		{"Signature", true, func(b []byte) { b[512] = 'X' }},
		{"HeaderSize", true, func(b []byte) { le.PutUint32(b[512+12:], 96) }},
		{"HeaderCRC32", false, func(b []byte) { b[512+40]++ }},
		{"SizeOfPartitionEntry", true, func(b []byte) { le.PutUint32(b[512+84:], 64) }},
		{"NumberOfPartitionEntries", true, func(b []byte) { le.PutUint32(b[512+80:], 1<<20) }},
		{"PartitionEntryLBA", true, func(b []byte) { le.PutUint64(b[512+72:], 1) }},
		{"PartitionEntryArrayCRC32", false, func(b []byte) { b[1024+56] ^= 1 }},
		{"EndingLBA", true, func(b []byte) { le.PutUint64(b[1024+40:], 5) }},
	} {
		t.Run(tc.field, func(t *testing.T) {
			b := gptDisk(512)
			tc.edit(b)
			if tc.reCRC {
				seal(b, 512)
			}
			_, err := esp.ReadGPT(bytes.NewReader(b), 512)
			var ge *esp.GPTError
			if !errors.As(err, &ge) || ge.Field != tc.field {
				t.Errorf("got %v, want a GPTError in %s", err, tc.field)
			}
		})
	}
	if _, err := esp.ReadGPT(bytes.NewReader(make([]byte, 600)), 512); err == nil {
		t.Error("a short disk is accepted")
	}
	if _, err := esp.ReadGPT(bytes.NewReader(gptDisk(512)), 500); err == nil {
		t.Error("a sector of 500 bytes is accepted")
	}
}

// TestReadGPTOfSfdisk reads a table made by the usual tool.
func TestReadGPTOfSfdisk(t *testing.T) {
	tool, err := exec.LookPath("sfdisk")
	if err != nil {
		if os.Getenv("CFSBOOT_REQUIRE_ORACLES") == "1" {
			t.Fatal(err)
		}
		t.Skip("sfdisk is not installed")
	}
	disk := filepath.Join(t.TempDir(), "disk")
	f, err := os.Create(disk)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(64 << 20); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), tool, "-q", disk)
	cmd.Stdin = strings.NewReader("label: gpt\nstart=2048, size=32768, type=U, name=boot\ntype=4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709, uuid=0FC63DAF-8483-4772-8E79-3D69D8477DE4\n")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("sfdisk: %v\n%s", err, out)
	}
	got, err := esp.ReadGPT(f, 512)
	if err != nil {
		t.Fatal(err)
	}
	if len(got) != 2 || got[0].Type != esp.TypeESP || got[0].Name != "boot" || got[0].Start != 1<<20 || got[0].Size != 16<<20 ||
		got[1].UUID != "0fc63daf-8483-4772-8e79-3d69d8477de4" {
		t.Errorf("got %+v", got)
	}
}

func FuzzReadGPT(f *testing.F) {
	f.Add(gptDisk(512))
	f.Fuzz(func(t *testing.T, data []byte) {
		parts, err := esp.ReadGPT(bytes.NewReader(data), 512)
		if err != nil {
			return
		}
		for _, p := range parts {
			if p.Size <= 0 || p.Start < 0 || p.Number < 1 {
				t.Errorf("partition %+v", p)
			}
		}
	})
}
