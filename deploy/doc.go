// Package deploy changes which operating system image a machine boots: install,
// upgrade, finalize, rollback, and the status document.
//
// Words (lifecycle.md 0.2): a deployment is one boot image and is named by its
// ID. Booted is the one that runs, staged the one that finalize makes the
// default at shutdown, rollback the one that `rollback` goes back to.
//
// Every change follows the protocol of docs/design/deploy.md: what is going to
// happen is in the journal before it happens, objects and images are durable
// before the state that needs them, the state before the payload on the boot
// partition, and all of it before one small boot entry, the commit point. A run
// that is killed anywhere leaves the booted and the staged deployment as they
// were, and the next run, of any command, finishes or cleans up what it finds.
//
// Decisions are pure functions over [Facts] (plan.go); effects follow from the
// plan they return. What the package touches of a machine comes through
// [Options], so that the whole life of a machine runs in a test without one.
//
// Functions that change a machine take one lock; a second one gets a
// *repo.LockedError. Nothing here is for use by several goroutines.
package deploy
