package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/cfsboot/cfsboot/deploy"
	"github.com/cfsboot/cfsboot/fsverity"
	"github.com/cfsboot/cfsboot/internal/durable"
	"github.com/cfsboot/cfsboot/internal/testutil/jsonschema"
	"github.com/cfsboot/cfsboot/internal/testutil/peimage"
	"github.com/cfsboot/cfsboot/repo"
	"github.com/cfsboot/cfsboot/repo/oci"
	"github.com/cfsboot/cfsboot/repo/remote"
	"github.com/cfsboot/cfsboot/systemd"
)

const schemaDir = "../../docs/schema"

// capture runs one command line with both streams in files and returns them.
func capture(t *testing.T, args ...string) (status int, stdout, stderr []byte) {
	t.Helper()
	dir := t.TempDir()
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	var files [2]*os.File
	for i := range files {
		if files[i], err = os.Create(filepath.Join(dir, fmt.Sprint(i))); err != nil {
			t.Fatal(err)
		}
		defer files[i].Close()
	}
	status = run(args, null, files[0], files[1])
	stdout, err1 := os.ReadFile(files[0].Name())
	stderr, err2 := os.ReadFile(files[1].Name())
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	return status, stdout, stderr
}

// TestSchemas: what is printed with --json is what the checked-in schemas describe, and there is one for every command.
func TestSchemas(t *testing.T) {
	seen := []string{"status-1.schema.json"} // checked in deploy
	check := func(name string, document []byte) {
		t.Helper()
		file := name + ".schema.json"
		seen = append(seen, file)
		jsonschema.Load(t, filepath.Join(schemaDir, file)).Check(t, document)
	}
	dir := t.TempDir()
	img, err := buildImage("")
	if err == nil {
		err = img.WriteLayout(filepath.Join(dir, "images"), "one")
	}
	if err != nil {
		t.Fatal(err)
	}
	r, source := filepath.Join(dir, "r"), "oci:"+filepath.Join(dir, "images")+":one"
	for _, c := range []struct {
		schema string
		args   []string
	}{
		{"repo-init-1", []string{"repo", "init", "--insecure"}},
		{"oci-images-1", []string{"oci", "images"}}, // empty lists
		{"oci-pull-1", []string{"oci", "pull", source, "os", "--platform", "linux/amd64"}},
		{"oci-pull-1", []string{"oci", "pull", source, "os", "--bootable", "--platform", "linux/amd64"}},
		{"oci-images-1", []string{"oci", "images"}},
		{"oci-inspect-1", []string{"oci", "inspect", "os"}},
		{"repo-gc-1", []string{"repo", "gc", "--dry-run"}},
		{"repo-gc-1", []string{"repo", "gc"}},
	} {
		status, stdout, stderr := capture(t, append(c.args, "--json", "--repo", r)...)
		if status != 0 || len(stderr) > 0 {
			t.Fatalf("%v: status %d, %s", c.args, status, stderr)
		}
		check(c.schema, stdout)
	}
	kernel, stub, efi := filepath.Join(dir, "kernel"), filepath.Join(dir, "stub"), filepath.Join(dir, "x.efi")
	if err := errors.Join(os.WriteFile(kernel, peimage.Kernel("6.1", "", false), 0o600), os.WriteFile(stub, peimage.Stub(), 0o600)); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		schema string
		args   []string
	}{
		{"uki-build-1", []string{"uki", "build", "--kernel", kernel, "--stub", stub, "--cmdline", "composefs=?" + strings.Repeat("a", 64), "--os-release", "ID=x", "--output", efi}},
		{"uki-inspect-1", []string{"uki", "inspect", efi}},
		{"uki-build-1", []string{"uki", "build", "--kernel", kernel, "--stub", stub, "--cmdline", "quiet", "--os-release", "ID=x", "--output", efi}},
		{"uki-inspect-1", []string{"uki", "inspect", efi}}, // with a problem, and empty lists
	} {
		status, stdout, stderr := capture(t, append(c.args, "--json")...)
		if status != 0 || len(stderr) > 0 {
			t.Fatalf("%v: status %d, %s", c.args, status, stderr)
		}
		check(c.schema, stdout)
	}
	// What needs a machine or privileges, by its struct.
	for _, c := range []struct {
		schema string
		result result
	}{
		{"change-1", changeResult{"cfsboot.change/1", &deploy.Change{Action: deploy.ActionStaged, Deployment: "ab", Entry: 7, Warnings: []string{"x"},
			Repaired: []deploy.Repaired{{Operation: "switch", Outcome: deploy.OutcomeUndone, Message: "x"}}}}},
		{"check-1", checkResult{"cfsboot.check/1", &deploy.Checked{Action: "stage", Available: true, Layers: 1, SizeBytes: 2}}},
		{"resume-1", resumeResult{"cfsboot.resume/1", &deploy.Resumed{Repaired: []deploy.Repaired{{Operation: "retire", Outcome: deploy.OutcomeFinished}}}}},
		{"install-to-disk-1", newInstallDiskResult(&deploy.DiskChange{
			Change: &deploy.Change{Action: deploy.ActionArmed, Deployment: "ab", Entry: 1, Warnings: []string{}},
			Disk:   deploy.InstalledDisk{Path: "/dev/sda", ESP: deploy.InstalledPartition{Number: 1}, Root: deploy.InstalledPartition{Number: 2}, Destroyed: []string{"x"}},
		})},
		{"boot-failure-1", bootFailureResult{"cfsboot.boot-failure/1", &deploy.BootFailureReport{Stage: "health", Units: []string{"x.service"}, Action: deploy.AfterStay, Warnings: []string{}}}},
		{"boot-review-1", bootReviewResult{"cfsboot.boot-review/1", &deploy.BootReview{Failed: []string{}, Findings: []string{"x"}, Warnings: []string{}}}},
		{"removal-1", newRemovalResult(&deploy.Removal{
			Removed: []deploy.Removed{{Deployment: "ab", Title: "OS", Version: "1"}}, Kept: []deploy.Kept{{Deployment: "cd", Why: deploy.WhyBooted}}, Warnings: []string{"x"}, Repository: &repo.Collected{Objects: 1},
			Repaired: []deploy.Repaired{{Operation: "retire", Outcome: deploy.OutcomeFinished, Deployment: "ef", Message: "x"}},
		})},
		{"removal-1", newRemovalResult(&deploy.Removal{Removed: []deploy.Removed{}, Kept: []deploy.Kept{}, Warnings: []string{}, Repaired: []deploy.Repaired{}})},
		{"oci-mount-1", mountResult{"cfsboot.oci-mount/1", "os", "ab", "/mnt", true}},
		{"initramfs-1", initramfsResult{"cfsboot.initramfs/1", "initrd", systemd.InitrdResult{Changed: true, Compression: []string{"zstd"}, Modules: []string{"erofs.ko"}, SizeBytes: 1}}},
	} {
		var b bytes.Buffer
		if err := writeJSON(&b, c.result); err != nil {
			t.Fatal(err)
		}
		check(c.schema, b.Bytes())
	}
	for _, err := range []error{
		errors.New("two\nlines"), usageError{"cfsboot", errors.New("x")}, &durable.SpaceError{Where: "/", Need: 2, Have: 1, Inodes: true, NeedFiles: 3, HaveFiles: 2, Err: unix.ENOSPC},
		&deploy.ConflictError{What: "files", Paths: []string{"/etc/x"}}, &deploy.RefusedError{Code: deploy.CodeImage, Detail: "x"},
		&fsverity.MismatchError{Where: "x", Got: fsverity.Sum(fsverity.SHA256, nil), Want: fsverity.Sum(fsverity.SHA256, []byte("x"))},
		&oci.DigestError{}, &remote.LayoutError{Ref: "oci:x", Op: "read", Err: fs.ErrNotExist}, &remote.Error{Ref: "x", Op: "read"}, fs.ErrNotExist, fs.ErrPermission, errors.ErrUnsupported,
	} {
		check("error-1", reportOf(t, err))
	}
	have, err := filepath.Glob(filepath.Join(schemaDir, "*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range have {
		if !slices.Contains(seen, filepath.Base(path)) {
			t.Errorf("%s: nothing was checked against it", path)
		}
	}
	t.Run("every class", func(t *testing.T) {
		data, err := os.ReadFile(filepath.Join(schemaDir, "error-1.schema.json"))
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range append(classes, classify(errors.New("x"))) {
			if !strings.Contains(string(data), `"`+c.name+`"`) {
				t.Errorf("class %q is not in the schema", c.name)
			}
		}
	})
}

// commandSchemas is what each command prints with --json.
var commandSchemas = map[string]string{
	"cfsboot status":                "status-1",
	"cfsboot upgrade":               "change-1",
	"cfsboot switch":                "change-1",
	"cfsboot rollback":              "change-1",
	"cfsboot finalize":              "change-1",
	"cfsboot record-failure":        "boot-failure-1",
	"cfsboot review-boots":          "boot-review-1",
	"cfsboot resume":                "resume-1",
	"cfsboot install to-filesystem": "change-1",
	"cfsboot install to-disk":       "install-to-disk-1",
	"cfsboot oci pull":              "oci-pull-1",
	"cfsboot oci images":            "oci-images-1",
	"cfsboot oci inspect":           "oci-inspect-1",
	"cfsboot oci mount":             "oci-mount-1",
	"cfsboot repo init":             "repo-init-1",
	"cfsboot repo gc":               "repo-gc-1",
	"cfsboot delete":                "removal-1",
	"cfsboot gc":                    "removal-1",
	"cfsboot initramfs":             "initramfs-1",
	"cfsboot uki build":             "uki-build-1",
	"cfsboot uki inspect":           "uki-inspect-1",
}

// TestEveryCommandHasSchema walks all commands: each has a checked-in schema for what it prints with --json (that it follows it is
// TestSchemas), each knows the flag, and its errors are one line of JSON.
func TestEveryCommandHasSchema(t *testing.T) {
	errorSchema := jsonschema.Load(t, filepath.Join(schemaDir, "error-1.schema.json"))
	seen := map[string]bool{}
	var walk func(c *cobra.Command)
	walk = func(c *cobra.Command) {
		for _, sub := range c.Commands() {
			walk(sub)
		}
		if c.HasSubCommands() {
			return
		}
		path := c.CommandPath()
		if strings.HasPrefix(path, "cfsboot completion ") {
			return // a program for the shell
		}
		seen[path] = true
		schema, ok := commandSchemas[path]
		if !ok {
			t.Errorf("%s: no schema is named for it", path)
			return
		}
		if _, err := os.Stat(filepath.Join(schemaDir, schema+".schema.json")); err != nil {
			t.Errorf("%s: %v", path, err)
		}
		status, stdout, stderr := capture(t, append(strings.Fields(path)[1:], "--json", "--no-such-flag")...)
		if status != 2 || len(stdout) > 0 || bytes.Count(stderr, []byte("\n")) != 1 {
			t.Errorf("%s: status %d, %q, %q, want one line of error", path, status, stdout, stderr)
		}
		errorSchema.Check(t, stderr)
	}
	walk(newRootCommand(newEnv(nil, nil, nil)))
	for path := range commandSchemas {
		if !seen[path] {
			t.Errorf("%s: there is no such command", path)
		}
	}
}

// reportOf returns what --json prints for an error: one line.
func reportOf(t *testing.T, err error) []byte {
	t.Helper()
	f, ferr := os.Create(filepath.Join(t.TempDir(), "stderr"))
	if ferr != nil {
		t.Fatal(ferr)
	}
	defer f.Close()
	e := newEnv(nil, nil, f)
	e.opts.json = true
	e.fail(err)
	out, ferr := os.ReadFile(f.Name())
	if ferr != nil {
		t.Fatal(ferr)
	}
	if bytes.Count(out, []byte("\n")) != 1 || !json.Valid(out) {
		t.Errorf("%v: got %q, want one line of JSON", err, out)
	}
	return out
}
