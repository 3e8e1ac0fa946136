package repo_test

import (
	"context"
	"encoding/binary"
	"testing"
)

// imageSizes are the sizes of the files of a Debian image at equal steps of their
// distribution: many small ones, few large ones.
var imageSizes = []int{120, 300, 600, 900, 1300, 1800, 2400, 3200, 4300, 6000, 8500, 12_000, 18_000, 27_000, 40_000, 70_000, 200_000}

// BenchmarkStore stores objects of an image's sizes, new ones and ones that the
// repository has.
func BenchmarkStore(b *testing.B) {
	for name, fresh := range map[string]bool{"new": true, "present": false} {
		b.Run(name, func(b *testing.B) {
			r := newRepo(b)
			total := 0
			for _, n := range imageSizes {
				total += n
			}
			data := pattern(200_000, 1)
			round := func(i int) {
				for _, n := range imageSizes {
					if fresh {
						binary.LittleEndian.PutUint64(data, uint64(i+1))
					}
					if _, _, err := store(context.Background(), r, data[:n], 32<<10); err != nil {
						b.Fatal(err)
					}
				}
			}
			round(0)
			b.SetBytes(int64(total))
			b.ReportAllocs()
			b.ReportMetric(float64(len(imageSizes)), "objects/op")
			for i := 1; b.Loop(); i++ {
				round(i)
			}
		})
	}
}
