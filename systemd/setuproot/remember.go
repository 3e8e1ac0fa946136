package setuproot

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cfsboot/cfsboot/bootimage/bls"
	"github.com/cfsboot/cfsboot/deploy/bootlog"
	"github.com/cfsboot/cfsboot/deploy/record"
	"github.com/cfsboot/cfsboot/internal/durable"
	"github.com/cfsboot/cfsboot/internal/efivar"
	"github.com/cfsboot/cfsboot/internal/mnt"
)

// Vars are the variables of the boot loader; efivar.Dir satisfies it. One that is
// not there wraps fs.ErrNotExist.
type Vars interface {
	Loader(name string) (string, error)
	SetLoader(name, text string) error
}

// maxStreak is how often in a row a deployment may fail before the machine is
// switched off: then every entry fails, or the loader does not count.
const maxStreak = 10

// failedBoot is what is known when a boot has failed and a reboot is to follow.
type failedBoot struct {
	Selected   string        // LoaderEntrySelected, "" if the loader does not tell
	Counted    bool          // the loader has counted this boot
	Deployment string        // by the command line, "" if unknown
	State      record.State  // of the journal; the zero value if it cannot be read
	Streak     record.Streak // this failure included
}

// failedStep is what follows.
type failedStep struct {
	PowerOff bool
	OneShot  *record.ArmedEntry // that the loader is to start next, once
}

// decideFailed chooses what follows. An entry that is counted needs nothing: the
// loader comes to another one by itself. One that is not would be started for ever,
// so another deployment is chosen that was found good, and that has not failed since
// a boot last reached a running system.
func decideFailed(f failedBoot) failedStep {
	if f.Streak.Count(f.Deployment) > maxStreak {
		return failedStep{PowerOff: true}
	}
	seq, ours := record.SeqOfEntryID(f.Selected, f.State.Token)
	if f.Counted || !ours || f.State.Token == "" || f.Deployment == "" {
		return failedStep{}
	}
	for i := len(f.State.Entries) - 1; i >= 0; i-- {
		a := &f.State.Entries[i]
		if a.Seq != seq && a.Deployment != f.Deployment && a.Blessed && !a.Failed && !a.Retiring &&
			f.State.FailureOf(a.Deployment) == nil && f.Streak.Count(a.Deployment) == 0 {
			return failedStep{OneShot: a}
		}
	}
	return failedStep{}
}

// failureRecord makes the record of this boot from the kernel log, the command line
// and what the loader says.
func failureRecord(o FailedOptions, kmsg []byte) record.BootFailure {
	f := record.BootFailure{BootID: o.BootID, Time: o.Now(), Stage: record.StageInitramfs, Reason: lastFailure(kmsg)}
	if f.Reason == "" {
		f.Reason = "the initramfs did not reach a root file system"
	} else if code, _, ok := strings.Cut(f.Reason, ":"); ok {
		f.Code = code
	}
	if images, err := bls.ParseKargs(o.Cmdline); err == nil && len(images) > 0 {
		f.Deployment = images[0].Digest.Hex()
	}
	if id, err := o.Vars.Loader(efivar.LoaderEntrySelected); err == nil {
		if seq, ok := record.SeqOfEntryID(id, ""); ok {
			f.Entry = seq
		}
	}
	return f
}

// openPlace opens the physical root, if it is mounted.
func openPlace(path string) (*durable.Dir, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	mounted, err := mnt.IsRoot(f)
	if err := errors.Join(err, f.Close()); err != nil {
		return nil, err
	}
	if !mounted {
		return nil, fmt.Errorf("%s: nothing is mounted there", path)
	}
	return durable.OpenDir(path)
}

// remember writes down the failed boot below the physical root, only where that
// holds our state, and tells the loader what to start instead if it has to be told.
// It returns the record as it was written. What failed is in the error; the rest is
// done all the same, but the loader is told only if the count of failures is on the
// disk, so that two deployments that both fail do not start each other for ever.
func remember(root *durable.Dir, o FailedOptions, f record.BootFailure, kmsg []byte, action Action) (record.BootFailure, error) {
	f.Action = string(action)
	log, err := bootlog.Open(root)
	if err != nil {
		return f, err
	}
	defer log.Close() //nolint:errcheck // every file was synced
	// Before the messages, which may take the last space.
	streak, err := log.AddToStreak(f.Deployment)
	errs := []error{err}
	if err == nil && action == ActionReboot {
		selected, _ := o.Vars.Loader(efivar.LoaderEntrySelected)
		_, cerr := o.Vars.Loader(efivar.LoaderBootCountPath)
		state, err := readState(root)
		errs = append(errs, err)
		step := decideFailed(failedBoot{selected, cerr == nil, f.Deployment, state, streak})
		if step.PowerOff {
			f.Action = string(ActionPowerOff)
		}
		if x := step.OneShot; x != nil {
			id := record.EntryName{Token: state.Token, Seq: x.Seq}.String()
			if err := o.Vars.SetLoader(efivar.LoaderEntryOneShot, id); err != nil {
				errs = append(errs, err)
			} else {
				f.OneShot = x.Seq
				o.Logger.Error(fmt.Sprintf("this boot entry is not counted: next boot, once: entry %s of deployment %.12s", id, x.Deployment))
			}
		}
	}
	return f, errors.Join(append(errs, log.Write(f, kmsg))...)
}

// readState reads the journal. A machine without one has the zero state.
func readState(root *durable.Dir) (record.State, error) {
	j, err := bootlog.ReadJournal(root)
	if errors.Is(err, record.ErrNoJournal) {
		return record.State{}, nil
	}
	if err != nil {
		return record.State{}, fmt.Errorf("read journal: %w", err)
	}
	return j.State(), nil
}

// loaderVars are the variables of this machine. systemd mounts efivarfs, where it
// can; an initramfs that loads the module late gets it here.
func loaderVars() Vars {
	var st unix.Statfs_t
	if unix.Statfs(efivar.Path, &st) == nil && st.Type != unix.EFIVARFS_MAGIC {
		_ = unix.Mount("efivarfs", efivar.Path, "efivarfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "") // reading fails, then
	}
	return efivar.Dir{}
}

// now is the clock of the machine, which may be wrong.
func now() time.Time { return time.Now() }
