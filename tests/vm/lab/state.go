package lab

import (
	"context"
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/cfsboot/cfsboot/tests/vm/qemu"
)

// State is what a running machine is, found out without cfsboot's help except
// for Status.
type State struct {
	Version string // VERSION_ID of the root
	Root    string // source, type and options of the mount at /
	Karg    string // value of composefs.digest= on the kernel command line
	ID      string // the fs-verity digest in it
	Status  Status
}

// Status is the part of "cfsboot status --format json" that the tests look at.
type Status struct {
	Status struct {
		Booted   *Entry `json:"booted"`
		Staged   *Entry `json:"staged"`
		Rollback *Entry `json:"rollback"`
	} `json:"status"`
	Cfsboot struct {
		Deployments []Deployment `json:"deployments"`
		Problems    []Problem    `json:"problems"`
	} `json:"cfsboot"`
}

// Problem is what the status complains about.
type Problem struct {
	Code    string `json:"code"`
	Message string `json:"message"`
}

// Deployment is what cfsboot's own part of the status says about one.
type Deployment struct {
	ID      string   `json:"id"`
	Roles   []string `json:"roles"`
	State   string   `json:"state"`
	Digest  string   `json:"manifestDigest"`
	Failure string   `json:"failure"`
	Boot    string   `json:"bootDigest"`
	Entries []struct {
		Sequence  uint64 `json:"sequence"`
		File      string `json:"file"`
		Counted   bool   `json:"counted"`
		TriesLeft uint   `json:"triesLeft"`
		TriesDone uint   `json:"triesDone"`
		Blessed   bool   `json:"blessed"`
	} `json:"entries"`
}

// Of returns what the status says about the deployment of a manifest, nil if it
// knows none.
func (s Status) Of(manifest string) *Deployment {
	i := slices.IndexFunc(s.Cfsboot.Deployments, func(d Deployment) bool { return d.Digest == manifest })
	if i < 0 {
		return nil
	}
	return &s.Cfsboot.Deployments[i]
}

// Entry is a deployment in the status.
type Entry struct {
	Image struct {
		Image struct {
			Image string `json:"image"`
		} `json:"image"`
		Version string `json:"version"`
		Digest  string `json:"imageDigest"`
	} `json:"image"`
	Composefs struct {
		Verity string `json:"verity"`
	} `json:"composefs"`
}

var karg = regexp.MustCompile(`(?:^| )composefs\.digest=(v1-sha512-12:([0-9a-f]{128}))(?: |\n|$)`)

// Look finds out what runs on a machine.
func Look(ctx context.Context, sh *qemu.Shell) (State, error) {
	var s State
	out, err := sh.Must(ctx, CommandLimit, `. /usr/lib/os-release; echo "$VERSION_ID"; findmnt -no SOURCE,FSTYPE,OPTIONS /; cat /proc/cmdline`)
	if err != nil {
		return s, err
	}
	lines := strings.SplitN(out, "\n", 3)
	if len(lines) < 3 {
		return s, fmt.Errorf("unexpected answer %q", out)
	}
	s.Version, s.Root = lines[0], lines[1]
	if m := karg.FindStringSubmatch(lines[2]); m != nil {
		s.Karg, s.ID = m[1], m[2]
	}
	out, err = sh.Must(ctx, CommandLimit, "cfsboot status --format json")
	if err != nil {
		return s, err
	}
	if err := json.Unmarshal([]byte(out), &s.Status); err != nil {
		return s, fmt.Errorf("status is not JSON: %w\n%s", err, out)
	}
	return s, nil
}

// Check compares a machine with what it should be: root of the wanted version
// and manifest, mounted read-only with fs-verity required on every file, from
// the image that the kernel command line names and the status reports. The
// status has to list problems of exactly the given codes.
func (s State) Check(version, manifest string, problems ...string) error {
	var wrong []string
	expect := func(ok bool, format string, args ...any) {
		if !ok {
			wrong = append(wrong, fmt.Sprintf(format, args...))
		}
	}
	fields := strings.Fields(s.Root)
	options := map[string]bool{}
	if len(fields) == 3 {
		for o := range strings.SplitSeq(fields[2], ",") {
			options[o] = true
		}
		expect(fields[1] == "overlay", "root is %s, want overlay", fields[1])
		expect(strings.Contains(fields[0], "composefs"), "root is mounted from %s, want a composefs", fields[0])
	}
	expect(len(fields) == 3 && options["verity=require"], "root mount %q does not require fs-verity", s.Root)
	expect(options["ro"], "root mount %q is not read-only", s.Root)
	expect(s.ID != "", "the kernel command line has no composefs.digest=v1-sha512-12:…")
	expect(strings.Contains(s.Root, s.ID[:min(len(s.ID), 64)]), "root mount %q does not name the digest %s", s.Root, s.ID)
	expect(s.Version == version, "VERSION_ID is %q, want %q", s.Version, version)
	if b := s.Status.Status.Booted; b == nil {
		expect(false, "status: nothing is booted")
	} else {
		expect(b.Image.Digest == manifest, "status: booted manifest is %s, want %s", b.Image.Digest, manifest)
		expect(b.Composefs.Verity == s.ID, "status: booted image is %s, want %s", b.Composefs.Verity, s.ID)
	}
	var codes []string
	for _, p := range s.Status.Cfsboot.Problems {
		codes = append(codes, p.Code)
	}
	expect(slices.Equal(codes, problems), "status reports the problems %q, want %q: %v", codes, problems, s.Status.Cfsboot.Problems)
	if len(wrong) > 0 {
		return fmt.Errorf("the machine is not as it should be:\n  %s", strings.Join(wrong, "\n  "))
	}
	return nil
}
