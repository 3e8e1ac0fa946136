package deploy

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/cfsboot/cfsboot/deploy/esp"
	"github.com/cfsboot/cfsboot/deploy/record"
)

// Status is the status document: the fields of bootc's Host document, version
// 1, and cfsboot's own under one key. Schema: docs/schema/status-1.schema.json;
// what bootc has and cfsboot does not is null or false. Source: lifecycle.md 1.6.
type Status struct {
	APIVersion string         `json:"apiVersion"` // "org.containers.bootc/v1"
	Kind       string         `json:"kind"`       // "BootcHost"
	Metadata   StatusMetadata `json:"metadata"`
	Spec       HostSpec       `json:"spec"`
	Status     HostStatus     `json:"status"`
	Cfsboot    OwnStatus      `json:"cfsboot"`
}

// StatusMetadata names the document.
type StatusMetadata struct {
	Name string `json:"name"` // "host"
}

// HostSpec is what the machine should be.
type HostSpec struct {
	Image     *ImageReference `json:"image"`     // of the staged deployment, else of the booted one
	BootOrder string          `json:"bootOrder"` // "default" or "rollback"
}

// ImageReference is an image as bootc writes it.
type ImageReference struct {
	Image     string `json:"image"`
	Transport string `json:"transport"`
}

// HostStatus is what the machine is.
type HostStatus struct {
	Staged           *BootEntry  `json:"staged"`
	Booted           *BootEntry  `json:"booted"`
	Rollback         *BootEntry  `json:"rollback"`
	OtherDeployments []BootEntry `json:"otherDeployments,omitempty"`
	RollbackQueued   bool        `json:"rollbackQueued"` // the next boot goes to rollback
	Type             *string     `json:"type"`           // always null, as on bootc's composefs backend
	ReadOnly         bool        `json:"readOnly"`       // the root cannot be written
}

// BootEntry is one deployment.
type BootEntry struct {
	Image             *ImageStatus    `json:"image"`
	CachedUpdate      *ImageStatus    `json:"cachedUpdate"` // that the last check of the booted one's reference found; else null
	Incompatible      bool            `json:"incompatible"`
	Pinned            bool            `json:"pinned"`
	SoftRebootCapable bool            `json:"softRebootCapable"`
	DownloadOnly      bool            `json:"downloadOnly"`
	Store             *string         `json:"store"`  // always null
	Ostree            *struct{}       `json:"ostree"` // always null
	Composefs         ComposefsStatus `json:"composefs"`
}

// ImageStatus is where a deployment comes from.
type ImageStatus struct {
	Image        ImageReference `json:"image"`
	Version      *string        `json:"version"`
	Timestamp    *string        `json:"timestamp"`   // RFC 3339
	ImageDigest  string         `json:"imageDigest"` // of the platform manifest
	Architecture string         `json:"architecture"`
}

// ComposefsStatus is what a deployment boots.
type ComposefsStatus struct {
	Verity               string  `json:"verity"`     // id of the deployment
	BootType             string  `json:"bootType"`   // "Bls" or "Uki"
	Bootloader           string  `json:"bootloader"` // "grub", "grub-cc", "systemd" or "none"
	BootDigest           *string `json:"bootDigest"`
	MissingVerityAllowed bool    `json:"missingVerityAllowed"`
}

// StatusInput is what was found on a machine.
type StatusInput struct {
	Facts
	Journal bool // there is a journal
	// DeploymentsRead: Facts.Deployments is what the state has.
	DeploymentsRead bool
	Root            *RootStatus  // nil: not a composefs root
	Loader          string       // LoaderInfo, "" if unknown
	Twins           []string     // devices with the UUID of the physical root, that one first; nil: it is alone
	Loaders         []esp.Loader // copies on the boot partition
	Choices         []esp.Choice // what tells the loader what to start
	LoaderUpdate    bool         // something replaces them
	BootLogs        []BootLog    // what was kept of failed boots, as far as it can be read
	Now             time.Time
	Problems        []Problem      // met while reading
	Recorded        time.Time      // when the last record of the journal was written, zero: unknown
	SELinux         SELinuxStatus  // zero: disabled
	Update          *record.Update // that the last check found, nil: none since the boot
}

// NewStatus makes the document. It is pure.
func NewStatus(in StatusInput) Status {
	b := newStatusBuilder(in)
	s := Status{
		APIVersion: "org.containers.bootc/v1",
		Kind:       "BootcHost",
		Metadata:   StatusMetadata{Name: "host"},
		Spec:       HostSpec{BootOrder: "default"},
		Cfsboot:    b.own(),
	}
	s.Status.ReadOnly = in.Booted != nil && in.Booted.Root == "ro"
	s.Status.Booted = b.entry(b.booted)
	s.Status.Staged = b.entry(b.staged)
	s.Status.Rollback = b.entry(b.rollback)
	if s.Status.Staged != nil {
		s.Status.Staged.DownloadOnly = b.in.State.Staged.DownloadOnly
	}
	if s.Status.Booted != nil {
		s.Status.Booted.CachedUpdate = b.cachedUpdate()
	}
	for _, id := range b.others {
		s.Status.OtherDeployments = append(s.Status.OtherDeployments, *b.entry(id))
	}
	for _, e := range []*BootEntry{s.Status.Staged, s.Status.Booted} {
		if e != nil && e.Image != nil && s.Spec.Image == nil {
			s.Spec.Image = &e.Image.Image
		}
	}
	if b.rollback != "" && b.next == b.rollback {
		s.Status.RollbackQueued = true
		s.Spec.BootOrder = "rollback"
	}
	return s
}

// statusBuilder knows the role of each deployment.
type statusBuilder struct {
	in       StatusInput
	booted   string // ids; "": none
	staged   string
	rollback string
	next     string   // what the loader starts next
	others   []string // deployments with an entry, in the order of the menu
	problems []Problem
}

func newStatusBuilder(in StatusInput) *statusBuilder {
	b := &statusBuilder{in: in, problems: slices.Clone(in.Problems)}
	if st := in.State.Staged; st != nil && in.StagedGone {
		b.problem(ProblemDeployment, "`cfsboot upgrade` stages it again", "the state of the staged deployment %s is gone", short(st.Deployment))
	}
	b.in.State = b.current()
	b.booted = in.BootedID()
	if st := b.in.State.Staged; st != nil {
		b.staged = st.Deployment
	}
	menu := b.menu()
	b.next = b.defaultID(menu)
	if r := b.in.rollbackTarget(); r != nil {
		b.rollback = r.Deployment
	}
	// After a rollback was asked for, that is what `rollback` means.
	if n := b.in.State.Newest(); n != nil && n.Deployment == b.next && b.next != b.booted && n.Blessed {
		b.rollback = b.next
	}
	for _, id := range menu {
		if id != b.booted && id != b.staged && id != b.rollback && !slices.Contains(b.others, id) {
			b.others = append(b.others, id)
		}
	}
	b.findProblems()
	return b
}

// current is the journal's state with what the loader did since.
func (b *statusBuilder) current() record.State {
	f := b.in.Facts
	if !b.in.Journal || !b.in.EntriesRead {
		return f.State
	}
	unfinished := f.State.Transaction // perhaps of a program that runs right now
	f.State.Transaction = nil
	for {
		r, ok := nextRepair(f)
		if !ok || r.RemoveEntry != "" {
			break
		}
		next, err := f.State.Apply(r.Event, b.in.Now)
		if err != nil {
			break // the next command that changes the machine will report it
		}
		f.State = next
	}
	f.State.Transaction = unfinished
	return f.State
}

// menu lists the deployments with a boot entry, in the order of the loader's
// menu, or of the journal if that cannot be read.
func (b *statusBuilder) menu() []string {
	var out []string
	add := func(id string) {
		if id != "" && !slices.Contains(out, id) {
			out = append(out, id)
		}
	}
	if b.in.EntriesRead {
		for _, e := range b.in.Entries {
			if a := b.in.known(e); a != nil {
				add(a.Deployment)
			}
		}
		return out
	}
	for _, a := range slices.Backward(b.in.State.Entries) {
		if !a.Failed {
			add(a.Deployment)
		}
	}
	for _, a := range slices.Backward(b.in.State.Entries) {
		add(a.Deployment)
	}
	return out
}

func (b *statusBuilder) defaultID(menu []string) string {
	if b.in.EntriesRead {
		if e, _ := esp.Choose(b.in.Entries, b.in.Choices); e != nil {
			return b.in.entryID(e)
		}
		return b.in.DefaultID()
	}
	if len(menu) > 0 {
		return menu[0]
	}
	return ""
}

// entry is one deployment in bootc's words, nil for no deployment.
func (b *statusBuilder) entry(id string) *BootEntry {
	if id == "" {
		return nil
	}
	e := &BootEntry{Composefs: ComposefsStatus{Verity: id, BootType: "Bls", Bootloader: loaderName(b.in.Loader)}}
	d, ok := b.in.Deployments[id]
	if !ok {
		if id == b.booted {
			e.Composefs.MissingVerityAllowed = !b.in.Booted.Secure
		}
		return e
	}
	if d.BootType == "uki" {
		e.Composefs.BootType = "Uki"
	}
	e.Composefs.BootDigest, e.Composefs.MissingVerityAllowed = &d.BootDigest, d.Insecure
	ref, err := record.ParseImageReference(d.Reference)
	if err != nil {
		return e
	}
	e.Image = &ImageStatus{
		Image:        ImageReference{Image: ref.Image, Transport: ref.Transport},
		Version:      optional(versionOf(d)),
		Timestamp:    timestamp(d.ImageCreated),
		ImageDigest:  d.ManifestDigest,
		Architecture: d.Architecture,
	}
	return e
}

// cachedUpdate is what the last check found, if that is about what runs and not
// what runs already.
func (b *statusBuilder) cachedUpdate() *ImageStatus {
	u, d := b.in.Update, b.in.Deployments[b.booted]
	if u == nil || u.Reference != d.Reference || u.ManifestDigest == d.ManifestDigest {
		return nil
	}
	ref, err := record.ParseImageReference(u.Reference)
	if err != nil {
		return nil
	}
	return &ImageStatus{
		Image:   ImageReference{Image: ref.Image, Transport: ref.Transport},
		Version: optional(u.Version), Timestamp: timestamp(u.Created), ImageDigest: u.ManifestDigest, Architecture: u.Architecture,
	}
}

// versionOf is the image's version, else that of its operating system.
func versionOf(d record.Deployment) string { return cmp.Or(d.ImageVersion, d.OSVersion) }

func optional(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}

// timestamp leaves out what is not RFC 3339: readers of the document rely on it.
func timestamp(s string) *string {
	if _, err := time.Parse(time.RFC3339, s); err != nil {
		return nil
	}
	return &s
}

// loaderName gives bootc's name of the boot loader in LoaderInfo.
func loaderName(info string) string {
	info = strings.ToLower(info)
	switch {
	case strings.Contains(info, "systemd-boot"):
		return "systemd"
	case strings.Contains(info, "grub cc"):
		return "grub-cc"
	case strings.Contains(info, "grub"):
		return "grub"
	}
	return "none"
}

// Problem is something that a person may want to look at. Problems do not make
// status fail.
type Problem struct {
	Code    string `json:"code"`    // one of the Problem constants
	Message string `json:"message"` // one line
	Hint    string `json:"hint"`    // what to do, "" if nothing is known
}

// Codes of problems; they are stable.
const (
	ProblemBooted      = "booted-record"      // booted.json is there but cannot be read
	ProblemSysroot     = "sysroot"            // the physical root file system cannot be read
	ProblemRepository  = "repository"         // the repository, without which nothing can be pulled, is gone
	ProblemJournal     = "journal"            // no usable journal on a machine of cfsboot
	ProblemTornRecord  = "journal-damaged"    // newer journal records are incomplete
	ProblemDeployment  = "deployment-record"  // a deployment.json cannot be read
	ProblemESP         = "boot-partition"     // boot entries cannot be read
	ProblemTwins       = "two-disks"          // a copy of the root's disk, or of its file system, is attached
	ProblemEntry       = "boot-entry"         // an entry cannot be read, or one of ours is missing
	ProblemUnknown     = "boot-entry-unknown" // an entry of ours that the journal does not know
	ProblemForeign     = "foreign-default"    // an entry of somebody else is what boots next
	ProblemFallback    = "fallback"           // the loader fell back to an older deployment
	ProblemBootFailure = "boot-failure"       // the record of a failed boot cannot be read
	ProblemFinalize    = "finalize"           // the staged deployment could not be made the default
	ProblemUnfinished  = "unfinished"         // a command did not finish, or runs right now
	ProblemRootSource  = "root-source"        // the mounted root is not the one in booted.json
	ProblemNoVerity    = "no-verity"          // fs-verity is not enforced
	ProblemNoRollback  = "no-rollback"        // there is nothing to go back to
	ProblemNotRecorded = "not-recorded"       // the running deployment is not in the journal
	ProblemState       = "state"              // the state of a deployment is gone, or a part of it
	ProblemImage       = "image"              // the image of a deployment is not in the repository, or has no name there
	ProblemPayload     = "payload"            // kernel or initrd of a deployment is missing, or has another size
	ProblemConfig      = "config"             // cfsboot.toml cannot be used, or has what nobody reads
	ProblemClock       = "clock"              // the clock is behind what was recorded
)

func (b *statusBuilder) problem(code, hint, format string, args ...any) {
	text := strings.Join(strings.Fields(fmt.Sprintf(format, args...)), " ")
	b.problems = append(b.problems, Problem{Code: code, Message: text, Hint: hint})
}

// findProblems adds what only the whole shows.
func (b *statusBuilder) findProblems() {
	in, s := b.in, b.in.State
	if in.Booted == nil && !in.Journal {
		return // not a machine of cfsboot
	}
	b.rootProblems()
	if in.Journal && b.booted != "" && !slices.Contains(s.Deployments(), b.booted) {
		b.problem(ProblemNotRecorded, "", "the running deployment %s is not in the journal", short(b.booted))
	}
	if st := s.Staged; st != nil && st.Failure != "" {
		b.problem(ProblemFinalize, "try `cfsboot finalize`", "the staged deployment %s could not be made the default: %s", short(st.Deployment), st.Failure)
	}
	if t := s.Transaction; t != nil {
		b.problem(ProblemUnfinished, "`cfsboot resume` finishes or undoes it, and so does every other command", "%s, begun at %s, is not finished: it runs now or was interrupted", t.Op, t.Started.Format(time.RFC3339))
	}
	b.fallbackProblems()
	if in.Journal && b.booted != "" && b.rollback == "" && len(s.Entries) > 1 && s.LatestOf(b.booted) != nil {
		b.problem(ProblemNoRollback, "", "no other deployment has booted and was found healthy")
	}
	b.stateProblems()
	if in.Recorded.Sub(in.Now) > clockSlack {
		b.problem(ProblemClock, "set the clock: no registry's certificate may be valid yet", "the clock says %s, but the journal was written at %s", in.Now.UTC().Format(time.RFC3339), in.Recorded.Format(time.RFC3339))
	}
	if in.EntriesRead {
		b.loaderProblems()
		b.entryProblems()
	}
}

// clockSlack is how far a clock may be behind before it is said to be: two systems
// on one machine may differ by their time zones.
const clockSlack = 24 * time.Hour

// stateProblems names the deployments that have an entry and lack something. A record
// that is there and cannot be read was told when it was read.
func (b *statusBuilder) stateProblems() {
	for _, id := range b.in.State.Deployments() {
		a := b.in.State.LatestOf(id)
		if a == nil || a.Retiring {
			continue
		}
		told := func(p Problem) bool { return p.Code == ProblemDeployment && strings.Contains(p.Message, id) }
		known := slices.ContainsFunc(b.problems, told)
		for _, x := range b.in.defects[id] {
			if x.Code != ProblemDeployment {
				b.problem(x.Code, b.mend(id), "%s", x.of(id))
				known = true
			}
		}
		if _, ok := b.in.Deployments[id]; !ok && b.in.DeploymentsRead && !known {
			b.problem(ProblemState, "", "the state of deployment %s is gone: it cannot boot", short(id))
		}
	}
}

// mend says what to do about a deployment that lacks something.
func (b *statusBuilder) mend(id string) string {
	switch {
	case id != b.booted && id != b.next:
	case b.in.bootable(id):
		return ""
	default:
		return "do not reboot before `cfsboot upgrade`, or `cfsboot rollback` to another one"
	}
	if isLast(b.in.Facts, id) {
		return "keep it until the running one is found healthy"
	}
	return fmt.Sprintf("`cfsboot delete %s` gives it up", short(id))
}

func latestSeq(s record.State, id string) uint64 {
	if a := s.LatestOf(id); a != nil {
		return a.Seq
	}
	return 0
}

// rootProblems compares the record of the initramfs with what is mounted.
func (b *statusBuilder) rootProblems() {
	booted, root := b.in.Booted, b.in.Root
	if booted == nil {
		return
	}
	told := slices.ContainsFunc(b.problems, func(p Problem) bool { return p.Code == ProblemTwins })
	if names := b.in.Twins; len(names) > 0 && !told {
		b.problem(ProblemTwins, "detach the other, or give it another UUID", "%s", twinsText(names))
	}
	if !booted.Secure {
		b.problem(ProblemNoVerity, "", "the running root was mounted without fs-verity: its kernel parameter allows that")
	}
	switch {
	case root == nil:
		b.problem(ProblemRootSource, "", "the root file system is not composefs, although the initramfs recorded %s", short(booted.Digest))
	case root.Digest != booted.Digest:
		b.problem(ProblemRootSource, "", "the root file system is composefs image %s, but the initramfs recorded %s", short(root.Digest), short(booted.Digest))
	case booted.Secure && root.Verity != "require":
		b.problem(ProblemNoVerity, "", "the running root does not require fs-verity (verity=%s), although the initramfs recorded that it does", cmp.Or(root.Verity, "not set"))
	}
}

// entryProblems compares the journal with the boot partition.
func (b *statusBuilder) entryProblems() {
	for _, a := range b.in.State.Entries {
		if a.Retiring {
			continue
		}
		switch e := b.in.EntryOf(a.Seq); {
		case e == nil && slices.ContainsFunc(b.in.State.Entries, func(x record.ArmedEntry) bool {
			return x.Deployment == a.Deployment && x.Seq > a.Seq && b.in.whole(x)
		}): // a newer one took its place
		case e == nil:
			b.problem(ProblemEntry, "", "boot entry %d of deployment %s is missing on the boot partition", a.Seq, short(a.Deployment))
		case e.Err != nil:
			b.problem(ProblemEntry, "", "boot entry %q cannot be read: %v", e.File, e.Err)
		case !isEntryOf(e, a.Deployment, a.BootDigest):
			b.problem(ProblemEntry, "", "boot entry %q does not start deployment %s", e.File, short(a.Deployment))
		case !inOrder(e):
			b.problem(ProblemEntry, fmt.Sprintf("give it back `version %s` and `sort-key %s`, or remove it", record.EntryVersion(a.Seq, ""), record.SortKey(e.Name.Token)),
				"boot entry %q was changed: by its version, sort-key or machine-id it stands elsewhere in the menu than its number says", e.File)
		}
	}
	var unread []esp.Entry
	for _, e := range b.in.Entries {
		switch ours := b.in.ours(e); {
		case ours && b.in.known(e) == nil:
			b.problem(ProblemUnknown, "", "boot entry %q is not in the journal", e.File)
		case !ours && e.Unread():
			unread = append(unread, e)
		case !ours && e.Long:
			b.problem(ProblemEntry, "", "the file %q of somebody else is too long for a boot entry: %v", esp.EntryDir+"/"+e.File, e.Err)
		}
	}
	if len(unread) > 0 {
		b.problem(ProblemEntry, "remove or mend it: as long as nobody knows what it starts, no kernel is removed from the boot partition", "%s", unreadText(unread))
	}
	for _, p := range choiceProblems(b.in.Facts, b.in.Entries, b.in.Choices) {
		b.problem(p.Code, p.Hint, "%s", p.Message)
	}
}

// sortedIDs lists deployments in a stable order.
func sortedIDs(m map[string]record.Deployment) []string { return slices.Sorted(maps.Keys(m)) }

// firstLine cuts an error with several lines, as errors.Join makes them.
func firstLine(err error) string {
	if err == nil {
		return ""
	}
	text, _, _ := strings.Cut(err.Error(), "\n")
	return text
}

var errNotComposefs = errors.New("the root file system is not composefs")
