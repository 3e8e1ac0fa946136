package main

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/cfsboot/cfsboot/bootimage"
	"github.com/cfsboot/cfsboot/bootimage/uki"
	"github.com/cfsboot/cfsboot/deploy"
	"github.com/cfsboot/cfsboot/deploy/esp"
	"github.com/cfsboot/cfsboot/erofs"
	"github.com/cfsboot/cfsboot/erofs/tree"
	"github.com/cfsboot/cfsboot/fsverity"
	"github.com/cfsboot/cfsboot/internal/durable"
	"github.com/cfsboot/cfsboot/internal/progress"
	"github.com/cfsboot/cfsboot/keyring"
	"github.com/cfsboot/cfsboot/repo"
	"github.com/cfsboot/cfsboot/repo/oci"
	"github.com/cfsboot/cfsboot/repo/pull"
	"github.com/cfsboot/cfsboot/repo/remote"
	"github.com/cfsboot/cfsboot/repo/splitstream"
)

// usageError is a command line that cannot be meant: an unknown flag, a missing argument.
type usageError struct {
	command string
	err     error
}

func (e usageError) Error() string {
	return fmt.Sprintf("%s: %v (see %s --help)", e.command, e.err, e.command)
}
func (e usageError) Unwrap() error { return e.err }

func usageErrorf(c *cobra.Command, format string, args ...any) error {
	return usageError{c.CommandPath(), fmt.Errorf(format, args...)}
}

// interrupted is whatever a command returned after SIGINT, SIGTERM or SIGHUP.
type interrupted struct{ err error }

// Error says what was being done, and not that it was canceled.
func (e interrupted) Error() string {
	what := strings.TrimSuffix(e.err.Error(), context.Canceled.Error())
	if what = strings.TrimSuffix(what, ": "); what == "" {
		return "interrupted"
	}
	return "interrupted: " + what
}
func (e interrupted) Unwrap() error { return e.err }

// statusOnly is an exit status of a command that has said everything: nothing is printed for it.
type statusOnly int

func (s statusOnly) Error() string { return fmt.Sprintf("status %d", int(s)) }

// class is a kind of failure that users and scripts tell apart.
type class struct {
	name   string
	exit   int
	match  func(error) bool
	advice string
}

// classes maps errors to exit statuses; the first match wins. Every other error is "failed", status 1.
var classes = []class{
	{"interrupted", 130, func(err error) bool { return is[interrupted](err) || errors.Is(err, context.Canceled) }, "run the command again: it goes on from what is complete"},
	{"usage", 2, func(err error) bool {
		return is[usageError](err) || is[*remote.ReferenceError](err) || is[*oci.TagError](err)
	}, ""},
	{"locked", 7, is[*repo.LockedError], "wait for the other process to end, or stop it"},
	{"no-space", 4, is[*durable.SpaceError], ""},
	{"conflict", 6, is[*deploy.ConflictError], "change the files named above back, or move them away, and run the command again"},
	{"conflict", 6, is[*repo.ConflictError], "use the configuration that is there, or another directory"},
	{"refused", 3, func(err error) bool {
		return isRefused(err, deploy.CodeNoRegistry) || isRefused(err, deploy.CodeNoRecord)
	}, "`cfsboot switch docker://HOST/NAME:TAG` names what to follow"},
	{"refused", 3, func(err error) bool { return isRefused(err, deploy.CodeNoSELinux) }, "--allow-no-selinux accepts it: then nothing is confined on that system"},
	{"refused", 3, func(err error) bool {
		return is[*deploy.RefusedError](err) || is[*keyring.PolicyError](err) || is[*tree.RequiredError](err) || is[*bootimage.ResourceError](err) ||
			is[*bootimage.SELinuxError](err) || is[*oci.PlatformError](err) || is[*oci.MediaTypeError](err) || is[*repo.InsecureError](err) || is[*fsverity.BlockSizeError](err)
	}, ""},
	{"refused", 3, is[*uki.InputError], ""},
	{"integrity", 8, is[*uki.FormatError], ""},
	{"not-found", 1, dangling, "a pull brings back what a tag should lead to; --drop-dangling removes refs that lead to nothing"},
	{"integrity", 8, func(err error) bool {
		return (is[*fsverity.MismatchError](err) || is[*splitstream.FormatError](err)) && !is[*oci.DigestError](err) && !is[*oci.FormatError](err)
	}, "something on this machine's disk is damaged, and nothing of it was used: `cfsboot oci pull` of the image, or an upgrade, makes images, layers and records anew"},
	{"integrity", 8, func(err error) bool {
		return is[*fsverity.MismatchError](err) || is[*erofs.FormatError](err) || is[*splitstream.FormatError](err) || is[*oci.DigestError](err) || is[*esp.VerifyError](err) ||
			is[*oci.FormatError](err) || is[*tree.EntryError](err) || is[*bootimage.FileError](err)
	}, "the data is not what its name or format says, and nothing of it was used: run the command again; if it stays so, tell who publishes the image"},
	{"layout", 1, is[*remote.LayoutError], "check the directory and the tag"},
	{"network", 5, func(err error) bool { return errors.Is(err, remote.ErrPlainHTTP) }, "--insecure-http allows it: then anyone on the way can read and change what is fetched"},
	{"network", 5, func(err error) bool { return is[*remote.Error](err) && badTime(err) }, "check the clock of this machine: the certificate of the registry is valid at another time"},
	{"network", 5, is[*remote.Error], "check the reference, the network and the credentials; a repeated run keeps what is complete"},
	{"reboot", 1, is[*deploy.RebootError], "everything else is done: reboot by hand; if the shutdown unit is missing, run `cfsboot finalize` before"},
	{"unsupported", 1, func(err error) bool { return errors.Is(err, errors.ErrUnsupported) }, ""},
	{"not-found", 1, func(err error) bool { return errors.Is(err, fs.ErrNotExist) }, ""},
	{"permission", 1, func(err error) bool { return errors.Is(err, fs.ErrPermission) }, "run it as root"},
}

// What to do where space is lacking depends on what the command writes (env.room).
const (
	roomOfRepository = "free space there, or use a larger file system; `cfsboot repo gc` removes what the repository holds for nothing"
	roomOfMachine    = "free space there; `cfsboot gc` removes deployments that are not to be kept and what nothing needs, " +
		"`cfsboot delete ID` another one, from the boot partition too"
	roomOfFile    = "free space there, or write the file somewhere else"
	roomOfInstall = "use a larger disk or file system, or a smaller image"
)

// dangling tells whether refs to nothing are all that is in the way of garbage collection.
func dangling(err error) bool {
	var roots *repo.RootsError
	return errors.As(err, &roots) && !slices.ContainsFunc(roots.Problems, func(p repo.RootProblem) bool { return !p.Dangling })
}

func is[T error](err error) bool {
	var target T
	return errors.As(err, &target)
}

// badTime reports whether a certificate is not valid now: it has expired, or this machine's clock is wrong.
func badTime(err error) bool {
	var c x509.CertificateInvalidError
	return errors.As(err, &c) && c.Reason == x509.Expired
}

// isRefused reports whether the command was refused for this reason.
func isRefused(err error, code string) bool {
	var r *deploy.RefusedError
	return errors.As(err, &r) && r.Code == code
}

// classify returns the class of an error; the last resort is "failed".
func classify(err error) class {
	for _, c := range classes {
		if c.match(err) {
			return c
		}
	}
	return class{name: "failed", exit: 1}
}

// errorReport is the line that --json and --progress=json print on standard error for a failure.
type errorReport struct {
	Error struct {
		Class   string `json:"class"`
		Message string `json:"message"`
		Advice  string `json:"advice,omitempty"`
		Details any    `json:"details,omitempty"`
	} `json:"error"`
}

// fail prints an error once, in the form that was asked for, and returns its exit status.
func (e *env) fail(err error) int {
	c := classify(err)
	switch {
	case c.name == "permission" && e.euid == 0:
		c.advice = "" // it was run as root
	case c.name == "no-space":
		c.advice = e.room
	}
	var incomplete *deploy.IncompleteError
	if errors.As(err, &incomplete) {
		again := "run the command again"
		if !incomplete.Removed {
			again += " with --wipe"
		}
		if c.name == "interrupted" || c.advice == "" {
			c.advice = again
		} else {
			c.advice += ", and " + again
		}
	}
	var left *pull.LeftError
	if errors.As(err, &left) && e.room != roomOfInstall {
		more := fmt.Sprintf("what the pull has stored stays (%s): `cfsboot repo gc` removes it", oneLine(left.Left))
		if c.advice != "" {
			more = c.advice + "; " + more
		}
		c.advice = more
	}
	if e.jsonLines() {
		var r errorReport
		r.Error.Class, r.Error.Message, r.Error.Advice = c.name, oneLine(err), c.advice
		r.Error.Details = details(err)
		_ = encodeJSON(e.stderr, r, "") // nothing is left to tell it to
		return c.exit
	}
	text := progress.Printable(oneLine(err))
	if !is[usageError](err) { // that names the command already
		text = "cfsboot: " + text
	}
	fmt.Fprintln(e.stderr, text)
	if c.advice != "" {
		fmt.Fprintf(e.stderr, "cfsboot: %s\n", progress.Printable(c.advice))
	}
	return c.exit
}

// oneLine is the text of an error without the line breaks that joined errors have.
func oneLine(err error) string { return strings.ReplaceAll(err.Error(), "\n", "; ") }

// details returns the fields of an error that scripts may want, or nil.
func details(err error) any {
	var space *durable.SpaceError
	if errors.As(err, &space) {
		return map[string]any{
			"where": space.Where, "need_bytes": space.Need, "have_bytes": space.Have,
			"inodes_used_up": space.Inodes, "need_inodes": space.NeedFiles, "have_inodes": space.HaveFiles,
		}
	}
	var conflict *deploy.ConflictError
	if errors.As(err, &conflict) {
		return map[string]any{"paths": conflict.Paths}
	}
	var refused *deploy.RefusedError
	if errors.As(err, &refused) {
		return map[string]any{"code": refused.Code}
	}
	var mismatch *fsverity.MismatchError
	if errors.As(err, &mismatch) {
		return map[string]any{"where": mismatch.Where, "got": mismatch.Got.String(), "want": mismatch.Want.String()}
	}
	return nil
}
