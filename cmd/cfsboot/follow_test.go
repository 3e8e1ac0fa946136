package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cfsboot/cfsboot/deploy"
)

// printed runs f with standard output in a file and returns what is there.
func printed(t *testing.T, f func(e *env) error) (string, error) {
	t.Helper()
	out, err := os.Create(filepath.Join(t.TempDir(), "stdout"))
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	err = f(newEnv(nil, out, out))
	data, rerr := os.ReadFile(out.Name())
	if rerr != nil {
		t.Fatal(rerr)
	}
	return string(data), err
}

// TestChecked: a check that finds nothing has a status of its own, and no error text.
func TestChecked(t *testing.T) {
	for _, c := range []struct {
		action string
		err    error
		text   string
		status error
	}{
		{"stage", nil, "new: docker://r/os:1 (0123456789ab, version 2), 1 layer of 2 B", nil},
		{"drop", nil, "gives up the staged deployment cd", nil},
		{"rearm", nil, "makes it the default again", nil},
		{"keep", deploy.ErrNothingToDo, "nothing new: docker://r/os:1 (0123456789ab, version 2) is staged", statusOnly(77)},
		{"nothing", deploy.ErrNothingToDo, "nothing new: ", statusOnly(77)},
	} {
		got, err := printed(t, func(e *env) error {
			return e.checked(&deploy.Checked{
				Action: c.action, Reference: "docker://r/os:1", ManifestDigest: "sha256:" + strings.Repeat("0123456789abcdef", 4), Version: "2", Layers: 1, SizeBytes: 2, Staged: "cd",
			}, c.err)
		})
		if !strings.Contains(got, c.text) || !errors.Is(err, c.status) {
			t.Errorf("%s: got %q, %v", c.action, got, err)
		}
	}
	refused := &deploy.RefusedError{Code: deploy.CodeFailed}
	if got, err := printed(t, func(e *env) error { return e.checked(nil, refused) }); got != "" || !errors.Is(err, refused) {
		t.Errorf("refused: got %q, %v", got, err)
	}
}

// TestChanged: what a change says, and which of its errors leave it standing.
func TestChanged(t *testing.T) {
	reboot := &deploy.RebootError{Deployment: "ab", Err: errors.New("access denied")}
	for _, c := range []struct {
		change    deploy.Change
		err, want error
		text      string
	}{
		{deploy.Change{Action: deploy.ActionStaged, DownloadOnly: true}, nil, nil, "waits for `cfsboot upgrade --from-downloaded`"},
		{deploy.Change{Action: deploy.ActionStaged, Reboot: true}, nil, nil, "rebooting"},
		{deploy.Change{Action: deploy.ActionReference, Reference: "docker://r/other"}, nil, nil, "docker://r/other, which is followed from now on"},
		{deploy.Change{Action: deploy.ActionNone}, deploy.ErrNothingToDo, nil, "nothing to do"},
		{deploy.Change{Action: deploy.ActionStaged}, reboot, reboot, "the next shutdown makes it the default"},
	} {
		got, err := printed(t, func(e *env) error { return e.changed(&c.change, c.err) })
		if !strings.Contains(got, c.text) || !errors.Is(err, c.want) {
			t.Errorf("%+v: got %q, %v", c.change, got, err)
		}
	}
	if c := classify(fmt.Errorf("x: %w", reboot)); c.name != "reboot" || c.exit != 1 {
		t.Errorf("reboot error: %+v", c)
	}
	for code, advice := range map[string]string{deploy.CodeNoRegistry: "cfsboot switch", deploy.CodeNoRecord: "cfsboot switch", deploy.CodeNoSELinux: "--allow-no-selinux", deploy.CodeImage: ""} {
		if c := classify(&deploy.RefusedError{Code: code}); c.exit != 3 || !strings.Contains(c.advice, advice) || advice == "" && c.advice != "" {
			t.Errorf("%s: %+v", code, c)
		}
	}
}

// TestResumed: what was put right is said, one line each.
func TestResumed(t *testing.T) {
	r := &deploy.Resumed{Repaired: []deploy.Repaired{{Message: "an interrupted switch was undone"}}, Default: "ab", Staged: "cd"}
	got, err := printed(t, func(e *env) error { return e.render(resumeResult{"cfsboot.resume/1", r}) })
	if want := "an interrupted switch was undone\nstaged: cd\ndefault of the next boot: ab\n"; got != want || err != nil {
		t.Errorf("got %q, %v", got, err)
	}
	if got, _ := printed(t, func(e *env) error { return e.render(resumeResult{"", &deploy.Resumed{}}) }); !strings.Contains(got, "no command was interrupted") {
		t.Errorf("got %q", got)
	}
}

// TestRemoved: what was put right comes before what was asked for.
func TestRemoved(t *testing.T) {
	r := &deploy.Removal{
		Repaired: []deploy.Repaired{{Message: "the interrupted removal of deployment cd was finished"}},
		Removed:  []deploy.Removed{{Deployment: "ab", Title: "OS 1"}}, Kept: []deploy.Kept{{Deployment: "ef", Why: deploy.WhyBooted}},
	}
	got, err := printed(t, func(e *env) error { return e.render(newRemovalResult(r)) })
	want := "the interrupted removal of deployment cd was finished\nremoved deployment ab (OS 1)\nfreed on the boot partition: 0 B\nkept deployment ef (no record): booted\n"
	if got != want || err != nil {
		t.Errorf("got %q, %v", got, err)
	}
}
