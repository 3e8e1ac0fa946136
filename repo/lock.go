package repo

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cfsboot/cfsboot/internal/durable"
)

// Lock takes the advisory lock (flock) on the open directory dir: shared, or
// exclusive. It waits up to wait for other holders and then returns a
// *LockedError. The lock goes when dir is closed.
func Lock(ctx context.Context, dir *durable.Dir, exclusive bool, wait time.Duration) error {
	how := unix.LOCK_SH | unix.LOCK_NB
	if exclusive {
		how = unix.LOCK_EX | unix.LOCK_NB
	}
	deadline := time.Now().Add(wait)
	for pause := 5 * time.Millisecond; ; pause = min(2*pause, 250*time.Millisecond) {
		err := dir.Flock(how)
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return err
		}
		left := time.Until(deadline)
		if left <= 0 {
			return &LockedError{Path: dir.Path(), PID: lockHolder(dir), Exclusive: exclusive}
		}
		timer := time.NewTimer(min(pause, left))
		select {
		case <-ctx.Done():
			timer.Stop()
			return fmt.Errorf("wait for the lock of %q: %w", dir.Path(), ctx.Err())
		case <-timer.C:
		}
	}
}

// lockAgain is how long to wait for the shared lock after the exclusive one.
const lockAgain = 10 * time.Second

// lockSoon is how long a lock is tried before anyone is told about it.
const lockSoon = 200 * time.Millisecond

// exclusively calls f with the exclusive lock, unless somebody else has a handle
// for longer than wait: that is a *LockedError. A longer wait is announced, unless
// waiting is nil. Afterwards the handle has the shared lock again, and knows no
// objects: the kernel gives the old lock up before it tries the new one, so that
// others may have collected in between.
func (r *Repository) exclusively(ctx context.Context, wait time.Duration, waiting func(*LockedError), f func() error) error {
	r.known.forget()
	err := Lock(ctx, r.dir, true, min(wait, lockSoon))
	var locked *LockedError
	if errors.As(err, &locked) && wait > lockSoon {
		if waiting != nil {
			waiting(locked)
		}
		err = Lock(ctx, r.dir, true, wait-lockSoon)
	}
	if err == nil {
		err = f()
	}
	if again := Lock(context.WithoutCancel(ctx), r.dir, false, lockAgain); again != nil {
		r.unlocked.Store(true)
		return errors.Join(err, again)
	}
	return err
}

// lockHolder looks for a process with a lock on dir in /proc/locks, where lines
// are "1: FLOCK  ADVISORY  WRITE 1234 fe:00:5678 0 EOF". It returns 0 if it
// finds none, for example in another PID namespace.
func lockHolder(dir *durable.Dir) int {
	st, err := dir.Lstat(".")
	if err != nil {
		return 0
	}
	f, err := os.Open("/proc/locks")
	if err != nil {
		return 0
	}
	defer f.Close()
	inode := fmt.Sprintf("%02x:%02x:%d", unix.Major(st.Dev), unix.Minor(st.Dev), st.Ino)
	for lines := bufio.NewScanner(f); lines.Scan(); {
		w := strings.Fields(lines.Text())
		if len(w) < 6 || w[1] != "FLOCK" || w[5] != inode {
			continue
		}
		if pid, err := strconv.Atoi(w[4]); err == nil && pid > 0 {
			return pid
		}
	}
	return 0
}
