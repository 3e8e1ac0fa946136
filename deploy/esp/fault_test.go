package esp_test

import (
	"context"
	"errors"
	"io/fs"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cfsboot/cfsboot/deploy/esp"
	"github.com/cfsboot/cfsboot/internal/durable"
	"github.com/cfsboot/cfsboot/internal/durable/durabletest"
)

// TestPlaceSurvivesEveryFault (peers write in place, without a sync: P7) fails and kills at every mutating call on a FAT
// model, cuts the power, and wants the next run to succeed; an entry must never
// be there without its whole payload.
func TestPlaceSurvivesEveryFault(t *testing.T) {
	p := payload(t, "kernel", "initrd")
	text := entryText(t, "aa", 7)
	text = strings.ReplaceAll(text, strings.Repeat("ab", 32), p.Digest)
	const name = "cfsboot_aa-0000000007+3-0.conf"
	run := func(ctx context.Context, dir *durable.Dir) error {
		e := esp.New(dir)
		if err := e.Place(ctx, p, false); err != nil {
			return err
		}
		return e.WriteEntry(name, []byte(text))
	}
	for _, mode := range []string{"fail", "kill before", "kill after"} {
		t.Run(mode, func(t *testing.T) {
			for n := 0; ; n++ {
				fat := durabletest.NewFAT(t)
				switch mode {
				case "fail":
					fat.FailAt(n, unix.EIO)
				case "kill before":
					fat.KillAt(n, durabletest.Before)
				default:
					fat.KillAt(n, durabletest.After)
				}
				err := run(t.Context(), fat.Dir())
				if !fat.Triggered() {
					if err != nil {
						t.Fatal(err)
					}
					return
				}
				if err == nil && mode == "fail" {
					t.Fatalf("fault %d (%s) was swallowed", n, fat.Op(n))
				}
				if mode == "fail" {
					if list, err := esp.New(fat.Dir()).Entries(); err != nil || len(list) > 0 {
						t.Fatalf("fault %d (%s): an error was reported, and the entry is there: %v", n, fat.Op(n), err)
					}
				}
				for seed := range uint64(4) {
					after := fat.PowerLossRandom(seed)
					e := esp.New(after.Dir())
					list, lerr := e.Entries()
					if lerr != nil {
						t.Fatal(lerr)
					}
					for _, x := range list {
						if x.Err != nil {
							// torn: the loader does not show it
							if err := e.RemoveEntry(x.File); err != nil {
								t.Fatal(err)
							}
							continue
						}
						if cerr := e.CheckDigest(t.Context(), p.Digest); cerr != nil {
							t.Fatalf("fault %d (%s), seed %d: a visible entry without its payload: %v", n, fat.Op(n), seed, cerr)
						}
					}
					if rerr := run(t.Context(), after.Dir()); rerr != nil && !errors.Is(rerr, fs.ErrExist) {
						t.Fatalf("fault %d (%s), seed %d: the next run: %v", n, fat.Op(n), seed, rerr)
					}
					if cerr := e.CheckEntry(name, []byte(text)); cerr != nil {
						t.Fatalf("fault %d (%s), seed %d: %v", n, fat.Op(n), seed, cerr)
					}
				}
			}
		})
	}
}
