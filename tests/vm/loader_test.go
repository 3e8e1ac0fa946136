package vm_test

import (
	"fmt"
	"os"
	"regexp"
	"testing"

	"github.com/cfsboot/cfsboot/tests/vm/debian"
	"github.com/cfsboot/cfsboot/tests/vm/lab"
	"github.com/cfsboot/cfsboot/tests/vm/osimage"
)

// loaderInfo prints what the loader that started the system calls itself.
const loaderInfo = `tr -d '\000' </sys/firmware/efi/efivars/LoaderInfo-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f; echo`

// imageFile is the size of the disk image in bytes.
const imageFile = 2 << 30

// TestVMNewerLoader is a machine with the boot loader of the next Debian, installed to
// a file and then given a larger disk. One logs in over the network. The loader counts
// and falls back like the one that the other machines have.
func TestVMNewerLoader(t *testing.T) {
	t.Parallel()
	l := openLab(t)
	loader, err := debian.NewLoader(t.Context(), func() (*debian.Apt, error) {
		return nil, os.ErrNotExist // "lab setup" fetches it
	})
	if err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(loader.Path)
	if err != nil {
		t.Fatal(err)
	}
	first := made(t, l, osimage.Recipe{Version: "13.0", Files: []osimage.File{{Name: debian.LoaderPath, Data: string(data)}}})
	follow := l.NewChannel("loader")
	key, err := l.NewKey(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	m := installed(t, l, "loader", follow, lab.Setup{Digest: first.Digest, ImageFile: imageFile, RootSSHKey: key.Public, Hostname: "from-afar"})
	if err := os.Truncate(m.Disk, 2*imageFile); err != nil {
		t.Fatal(err)
	}
	if err := m.ListenSSH(t.Context()); err != nil {
		t.Fatal(err)
	}
	sh := boot(t, m)
	overNetwork(t, m, key)
	if got := must(t, sh, loaderInfo); !regexp.MustCompile(`systemd-boot ` + regexp.QuoteMeta(loader.Version) + `\b`).MatchString(got) {
		t.Fatalf("the loader is %q, want systemd-boot %s", got, loader.Version)
	}
	sh = fallsBack(t, l, m, sh, follow, first, failing{
		name: "the kernel panics early", recipe: osimage.PanicsEarly, console: `Kernel panic - not syncing: Attempted to kill init`, reason: `left no trace`,
	})
	sh = fallsBack(t, l, m, sh, follow, first, hang)
	good := made(t, l, osimage.Next(1, 0))
	if err := follow.Offer(t.Context(), good); err != nil {
		t.Fatal(err)
	}
	must(t, sh, upgrade)
	if sh, err = m.Reboot(t.Context(), sh); err != nil {
		t.Fatal(err)
	}
	blessed(t, sh, good)
	check(t, look(t, sh).Check(good.Version, good.Digest))
}

// overNetwork logs in with the key that the installation was given, and looks at the
// name and at the size that the root has taken.
func overNetwork(t *testing.T, m *lab.Machine, key lab.Key) {
	t.Helper()
	out, err := m.SSH(t.Context(), key, lab.CommandLimit, "id -un; uname -n; cfsboot status >/dev/null && echo status")
	if err != nil {
		t.Fatal(err)
	}
	if out != "root\nfrom-afar\nstatus\n" {
		t.Errorf("over the network: %q", out)
	}
	// The machine does it by itself; the test waits.
	const grown = `timeout 110 sh -c 'until [ $(systemctl show -P ExecMainExitTimestampMonotonic cfsboot-grow-root.service) -gt 0 ]; do sleep 1; done' &&
systemctl show -P Result cfsboot-grow-root.service && stat -f -c %b /sysroot`
	if out, err = m.SSH(t.Context(), key, lab.CommandLimit, grown); err != nil {
		t.Fatalf("%v: cfsboot-grow-root.service has not run", err)
	}
	var result string
	var size int64
	if _, err := fmt.Sscan(out, &result, &size); err != nil || result != "success" || size*4096 < imageFile {
		t.Errorf("after the growth (%s) the root has %q blocks of 4 KiB on a disk that grew from %d to %d bytes", result, out, int64(imageFile), int64(2*imageFile))
	}
}
