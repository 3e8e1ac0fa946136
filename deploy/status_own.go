package deploy

import (
	"slices"
	"time"

	"github.com/cfsboot/cfsboot/deploy/record"
)

// StatusSchema is the schema number of the part under "cfsboot".
const StatusSchema = "cfsboot.status/1"

// OwnStatus is what cfsboot knows beyond bootc's fields. No field is ever left
// out; what does not apply is null, "" or an empty list.
type OwnStatus struct {
	Schema         string             `json:"schema"`   // StatusSchema
	Managed        bool               `json:"managed"`  // installed or booted by cfsboot
	Booted         *BootedStatus      `json:"booted"`   // null: not booted by cfsboot
	Root           *RootStatus        `json:"root"`     // null: the root is not composefs
	NextBoot       *string            `json:"nextBoot"` // id that the loader starts next, null: unknown or not ours
	Transaction    *TransactionStatus `json:"transaction"`
	Deployments    []DeploymentStatus `json:"deployments"` // booted, staged, rollback, then the others
	Loader         LoaderStatus       `json:"loader"`
	SELinux        SELinuxStatus      `json:"selinux"`
	BootFailures   []BootFailure      `json:"bootFailures"`   // boots that failed, the newest first
	ForeignEntries []string           `json:"foreignEntries"` // files of boot entries that are not of this installation
	Problems       []Problem          `json:"problems"`
}

// BootedStatus is the record of the initramfs.
type BootedStatus struct {
	ID            string  `json:"id"`
	Karg          string  `json:"karg"`
	Secure        bool    `json:"secure"` // fs-verity is enforced
	Gate          string  `json:"gate"`
	Signer        *string `json:"signer"`
	EntrySequence *uint64 `json:"entrySequence"`
	Etc           string  `json:"etc"`
	Var           string  `json:"var"`
	Root          string  `json:"root"`
	Kernel        string  `json:"kernel"`
	SysrootDevice string  `json:"sysrootDevice"` // "major:minor"
	SysrootUUID   string  `json:"sysrootUuid"`
	DurationMS    int64   `json:"durationMs"` // of the initramfs step
}

// RootStatus is the mount of / as the kernel shows it.
type RootStatus struct {
	Source string `json:"source"` // "composefs:<id>"
	Digest string `json:"digest"` // the id in it
	Verity string `json:"verity"` // overlayfs' option: "require", "on", "off", or "" if not shown
}

// SELinuxStatus is what the running system does about SELinux.
type SELinuxStatus struct {
	Mode   string `json:"mode"`   // "enforcing", "permissive" or "disabled"
	Policy string `json:"policy"` // SELINUXTYPE of /etc/selinux/config, "" if disabled or unknown
	Label  string `json:"label"`  // of the first process, "" if disabled or unknown
}

// TransactionStatus is a command that did not finish, or runs right now.
type TransactionStatus struct {
	ID        string `json:"id"`
	Operation string `json:"operation"` // "install", "upgrade", "switch" or "rollback"
	Reference string `json:"reference"`
	Started   string `json:"started"` // RFC 3339
}

// Roles of a deployment.
const (
	RoleBooted   = "booted"
	RoleStaged   = "staged"
	RoleRollback = "rollback"
	RoleOther    = "other"
	RoleOrphan   = "orphan" // on the disk, but nothing starts it
)

// States of a deployment.
const (
	StateGood     = "good"     // booted and found healthy
	StateTrying   = "trying"   // was started, is not found healthy yet
	StateUntried  = "untried"  // was never started
	StateFailed   = "failed"   // the loader gave up on it
	StateStaged   = "staged"   // waits for finalize
	StateRetiring = "retiring" // is being removed
	StateUnknown  = "unknown"
)

// DeploymentStatus is one deployment in full.
type DeploymentStatus struct {
	ID             string        `json:"id"`
	PlainID        string        `json:"plainId"`
	Roles          []string      `json:"roles"` // at least one
	State          string        `json:"state"`
	Reference      string        `json:"reference"`
	ManifestDigest string        `json:"manifestDigest"`
	IndexDigest    string        `json:"indexDigest"`
	ConfigDigest   string        `json:"configDigest"`
	ImageVersion   string        `json:"imageVersion"`
	OSID           string        `json:"osId"`
	OSVersion      string        `json:"osVersion"`
	Title          string        `json:"title"`
	Kernel         string        `json:"kernel"`
	BootDigest     string        `json:"bootDigest"`
	Options        string        `json:"options"`
	Kargs          []record.Karg `json:"kernelArguments"` // of its boot entry, in order, with their sources
	Created        string        `json:"created"`         // RFC 3339, "" if there is no record
	Failure        string        `json:"failure"`         // why it is not tried again, or why finalize failed
	Entries        []EntryStatus `json:"entries"`         // by sequence number
}

// EntryStatus is one boot entry of a deployment.
type EntryStatus struct {
	Sequence  uint64 `json:"sequence"`
	File      string `json:"file"`      // "" if it is not there or cannot be seen
	Counted   bool   `json:"counted"`   // the name has a boot counter
	TriesLeft uint   `json:"triesLeft"` // 0 unless counted
	TriesDone uint   `json:"triesDone"`
	Blessed   bool   `json:"blessed"`
	Failed    bool   `json:"failed"`
	Armed     string `json:"armed"` // RFC 3339
}

func (b *statusBuilder) own() OwnStatus {
	in := b.in
	s := OwnStatus{
		Schema:         StatusSchema,
		Managed:        in.Booted != nil || in.Journal,
		Root:           in.Root,
		NextBoot:       optional(b.next),
		Deployments:    []DeploymentStatus{},
		Loader:         b.loader(),
		SELinux:        in.SELinux,
		BootFailures:   b.bootFailures(),
		ForeignEntries: []string{},
		Problems:       append([]Problem{}, b.problems...),
	}
	if s.SELinux.Mode == "" {
		s.SELinux.Mode = SELinuxDisabled
	}
	if x := in.Booted; x != nil {
		s.Booted = &BootedStatus{
			ID: x.Digest, Karg: x.Karg, Secure: x.Secure, Gate: x.Gate, Signer: x.Signer, EntrySequence: x.EntrySequence,
			Etc: x.Etc, Var: x.Var, Root: x.Root, Kernel: x.Kernel, SysrootDevice: x.Sysroot.Dev, SysrootUUID: x.Sysroot.UUID,
			DurationMS: x.DurationMS,
		}
	}
	if t := in.State.Transaction; t != nil {
		s.Transaction = &TransactionStatus{ID: t.ID, Operation: string(t.Op), Reference: t.Reference, Started: rfc3339(t.Started)}
	}
	for _, id := range b.all() {
		s.Deployments = append(s.Deployments, b.deployment(id))
	}
	for _, e := range in.Entries {
		if !in.ours(e) {
			s.ForeignEntries = append(s.ForeignEntries, e.File)
		}
	}
	return s
}

// all lists every deployment that is known from anywhere.
func (b *statusBuilder) all() []string {
	var out []string
	for _, id := range slices.Concat([]string{b.booted, b.staged, b.rollback}, b.others, b.in.State.Deployments(), sortedIDs(b.in.Deployments)) {
		if id != "" && !slices.Contains(out, id) {
			out = append(out, id)
		}
	}
	return out
}

func (b *statusBuilder) deployment(id string) DeploymentStatus {
	d := b.in.Deployments[id] // the zero value if there is no record
	out := DeploymentStatus{
		ID: id, PlainID: d.PlainID, Roles: b.roles(id), State: b.state(id), Reference: d.Reference,
		ManifestDigest: d.ManifestDigest, IndexDigest: d.IndexDigest, ConfigDigest: d.ConfigDigest,
		ImageVersion: d.ImageVersion, OSID: d.OSID, OSVersion: d.OSVersion, Title: d.Title, Kernel: d.Kernel,
		BootDigest: d.BootDigest, Options: d.Options, Kargs: b.kargsOf(id), Created: rfc3339(d.Created), Entries: []EntryStatus{},
	}
	if f := b.in.State.FailureOf(id); f != nil {
		out.Failure = f.Reason
	}
	if st := b.in.State.Staged; st != nil && st.Deployment == id && st.Failure != "" {
		out.Failure = st.Failure
	}
	for _, a := range b.in.State.Entries {
		if a.Deployment == id {
			out.Entries = append(out.Entries, b.bootEntry(a))
		}
	}
	return out
}

func (b *statusBuilder) bootEntry(a record.ArmedEntry) EntryStatus {
	out := EntryStatus{Sequence: a.Seq, Blessed: a.Blessed, Failed: a.Failed, Armed: rfc3339(a.Armed)}
	if e := b.in.EntryOf(a.Seq); e != nil {
		c := e.Name.Counter
		out.File, out.Counted, out.TriesLeft, out.TriesDone = e.File, c.Present, c.Left, c.Done
	}
	return out
}

func (b *statusBuilder) roles(id string) []string {
	var out []string
	for _, r := range []struct{ id, role string }{{b.booted, RoleBooted}, {b.staged, RoleStaged}, {b.rollback, RoleRollback}} {
		if r.id == id {
			out = append(out, r.role)
		}
	}
	switch {
	case len(out) > 0:
		return out
	case b.in.State.LatestOf(id) != nil:
		return []string{RoleOther}
	}
	return []string{RoleOrphan}
}

func (b *statusBuilder) state(id string) string {
	a := b.in.State.LatestOf(id)
	switch {
	case a == nil && id == b.staged:
		return StateStaged
	case a == nil:
		return StateUnknown
	case a.Retiring:
		return StateRetiring
	case a.Failed:
		return StateFailed
	case a.Blessed:
		return StateGood
	case id == b.booted:
		return StateTrying
	}
	e := b.in.EntryOf(a.Seq)
	switch {
	case e == nil:
		return StateUnknown
	case e.Name.Counter.Done > 0:
		return StateTrying
	}
	return StateUntried
}

// rfc3339 formats a time of a record, "" for none.
func rfc3339(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format(time.RFC3339)
}
