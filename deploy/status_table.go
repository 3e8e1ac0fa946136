package deploy

import (
	"fmt"
	"slices"
	"strings"
)

// StatusTable is the status for people. Its text is not an interface.
type StatusTable struct {
	Lines    []string   // about the machine
	Rows     [][]string // of the deployments; the first is the header; nil if there are none
	Kargs    [][]string // kernel arguments and their sources, likewise; shown if more is asked for
	Problems []string   // one line each
	Log      []string   // the last messages of the boot that failed, below the problems
}

// Table makes the form for people from the document.
func (s Status) Table() StatusTable {
	var t StatusTable
	own := s.Cfsboot
	line := func(name, format string, args ...any) {
		t.Lines = append(t.Lines, fmt.Sprintf("%-13s", name+":")+fmt.Sprintf(format, args...))
	}
	switch {
	case !own.Managed && own.Root != nil:
		t.Lines = append(t.Lines, "This machine is not managed by cfsboot. Its root is composefs, mounted by another program.")
		line("Root", "%s", rootText(own))
	case !own.Managed:
		t.Lines = append(t.Lines, "This machine is not managed by cfsboot.")
	default:
		line("Root", "%s", rootText(own))
		if own.Booted != nil {
			line("Selected by", "%s", strings.ReplaceAll(own.Booted.Karg, own.Booted.ID, short(own.Booted.ID)))
			line("Kernel", "%s", own.Booted.Kernel)
		}
		if x := own.SELinux; x.Mode != SELinuxDisabled {
			line("SELinux", "%s, policy %s", x.Mode, firstOf(x.Policy, "unknown"))
		}
		line("Next boot", "%s", nextText(s))
		if text := waitingText(s); text != "" {
			line("Update", "%s", text)
		}
	}
	if x := own.Transaction; x != nil {
		line("Unfinished", "%s of %s", x.Operation, x.Started)
	}
	if len(own.Deployments) > 0 {
		t.Rows = append(t.Rows, []string{"ROLE", "ID", "IMAGE", "VERSION", "KERNEL", "STATE", "ENTRY"})
	}
	for _, d := range own.Deployments {
		t.Rows = append(t.Rows, []string{
			strings.Join(d.Roles, ","), short(d.ID), dash(d.Reference), dash(firstOf(d.ImageVersion, d.OSVersion)), dash(d.Kernel),
			stateText(d), entryText(d),
		})
	}
	for _, d := range own.Deployments {
		for _, k := range d.Kargs {
			t.Kargs = append(t.Kargs, []string{short(d.ID), strings.ReplaceAll(k.Argument, d.ID, short(d.ID)), firstOf(k.File, k.Source)})
		}
	}
	if len(t.Kargs) > 0 {
		t.Kargs = slices.Insert(t.Kargs, 0, []string{"ID", "KERNEL ARGUMENT", "FROM"})
	}
	for _, p := range own.Problems {
		text := p.Code + ": " + p.Message
		if p.Hint != "" {
			text += "; " + p.Hint
		}
		t.Problems = append(t.Problems, text)
	}
	t.Log = s.failureLog()
	return t
}

func rootText(own OwnStatus) string {
	if own.Root == nil {
		return "not composefs"
	}
	kind, _, _ := strings.Cut(own.Root.Source, own.Root.Digest)
	verity := "fs-verity enforced for every file"
	if own.Root.Verity != "require" {
		verity = "fs-verity not enforced"
	}
	return fmt.Sprintf("%s%s, %s", kind, short(own.Root.Digest), verity)
}

func nextText(s Status) string {
	own := s.Cfsboot
	switch {
	case s.Status.Staged != nil && !s.Status.Staged.DownloadOnly:
		return fmt.Sprintf("staged deployment %s, made the default at shutdown", short(s.Status.Staged.Composefs.Verity))
	case own.NextBoot == nil:
		return "unknown"
	case own.Booted != nil && *own.NextBoot == own.Booted.ID:
		return fmt.Sprintf("the running deployment %s", short(*own.NextBoot))
	}
	return fmt.Sprintf("deployment %s", short(*own.NextBoot))
}

// waitingText tells what an update waits for, "" if there is none.
func waitingText(s Status) string {
	switch st, b := s.Status.Staged, s.Status.Booted; {
	case st != nil && st.DownloadOnly:
		return fmt.Sprintf("deployment %s is downloaded, and waits for `cfsboot upgrade --from-downloaded`", short(st.Composefs.Verity))
	case st == nil && b != nil && b.CachedUpdate != nil:
		u := b.CachedUpdate
		version := ""
		if u.Version != nil {
			version = " version " + *u.Version
		}
		return fmt.Sprintf("%s%s (%s) is available: `cfsboot upgrade` takes it", u.Image.Image, version, short(strings.TrimPrefix(u.ImageDigest, "sha256:")))
	}
	return ""
}

func stateText(d DeploymentStatus) string {
	if d.State == StateTrying || d.State == StateUntried {
		for i := len(d.Entries) - 1; i >= 0; i-- {
			if e := d.Entries[i]; e.Counted {
				return fmt.Sprintf("%s, %d of %d tries left", d.State, e.TriesLeft, e.TriesLeft+e.TriesDone)
			}
		}
	}
	if d.Failure != "" {
		return d.State + ": " + cutText(d.Failure)
	}
	return d.State
}

// cutText keeps a column of the table narrow; the problems below have it whole.
func cutText(s string) string {
	const width = 60
	r := []rune(s)
	if len(r) <= width {
		return s
	}
	return string(r[:width-1]) + "…"
}

// entryText is the newest boot entry, the one that counts.
func entryText(d DeploymentStatus) string {
	if len(d.Entries) == 0 {
		return "-"
	}
	return fmt.Sprint(d.Entries[len(d.Entries)-1].Sequence)
}

func dash(s string) string { return firstOf(s, "-") }

func firstOf(a, b string) string {
	if a != "" {
		return a
	}
	return b
}
