package repo

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cfsboot/cfsboot/erofs"
	"github.com/cfsboot/cfsboot/fsverity"
	"github.com/cfsboot/cfsboot/internal/durable"
)

// Options for Open. The zero value accepts every algorithm and both modes, does
// not wait for a lock and does not log.
type Options struct {
	Algorithm     fsverity.Algorithm // expected; 0 accepts what the repository has
	RequireVerity bool               // refuse an insecure repository
	LockWait      time.Duration      // how long to wait for garbage collection elsewhere
	// KeepFree is how many bytes of the file system objects leave free; storing one
	// fails with a *durable.SpaceError before. 0: 64 MiB and 1024 inodes, but at
	// most an eighth of what there is; negative: none.
	KeepFree int64
	// Space says how much room there is; nil asks the file system.
	Space  func() (durable.Space, error)
	Logger *slog.Logger // nil discards
}

// Repository is an open repository.
type Repository struct {
	dir      *durable.Dir // own descriptor, holds the shared lock
	meta     Metadata
	verity   support
	readOnly error // why nothing may be written, nil if it may
	log      *slog.Logger

	mu      sync.Mutex // makes directories
	objects atomic.Pointer[durable.Dir]
	shards  [256]atomic.Pointer[durable.Dir]
	known   knownSet
	hashers sync.Pool
	order   order
	stats   stats
	room    room
	runs    runs
	// unlocked is set when the shared lock was lost on the way to the exclusive one
	// and could not be had again: then nothing protects what is stored.
	unlocked atomic.Bool
}

// Open opens the repository in dir and takes its shared lock. The caller keeps
// dir; both may be closed in any order.
//
// Errors: *MetadataMissingError, *MetadataError, *VersionError, *AlgorithmError,
// *FeatureError, *InsecureError, *LockedError. Unknown read-only-compatible
// features do not stop Open, but every call that would write.
func Open(ctx context.Context, dir *durable.Dir, opts Options) (*Repository, error) {
	own, err := dir.Sub(".")
	if err != nil {
		return nil, err
	}
	r := &Repository{dir: own, log: opts.Logger, room: room{keep: opts.KeepFree, space: opts.Space}}
	if opts.Space == nil {
		r.room.space = own.Space
	}
	if r.log == nil {
		r.log = slog.New(slog.DiscardHandler)
	}
	if err := r.open(ctx, opts); err != nil {
		return nil, errors.Join(err, own.Close())
	}
	r.order.init()
	return r, nil
}

func (r *Repository) open(ctx context.Context, opts Options) (err error) {
	path := r.dir.Path()
	if err := Lock(ctx, r.dir, false, opts.LockWait); err != nil {
		return err
	}
	if r.meta, r.verity, err = readMeta(r.dir); err != nil {
		return err
	}
	if r.meta.Version > formatVersion {
		return &VersionError{Path: path, Got: r.meta.Version, Want: formatVersion}
	}
	if opts.Algorithm != 0 && opts.Algorithm != r.meta.Algorithm {
		return &AlgorithmError{Where: "repository " + path, Got: r.meta.Algorithm, Want: opts.Algorithm}
	}
	if list := unknown(r.meta.Incompatible); len(list) > 0 {
		return &FeatureError{Path: path, Features: list}
	}
	if list := unknown(r.meta.ReadOnlyCompatible, featureV1); len(list) > 0 {
		r.readOnly = &FeatureError{Path: path, Features: list, ReadOnly: true}
	}
	if opts.RequireVerity && r.verity != verityRequired {
		return &InsecureError{Path: path}
	}
	return nil
}

// Close releases the lock. Data and names that were not synced stay so.
func (r *Repository) Close() error {
	var errs []error
	for i := range r.shards {
		if d := r.shards[i].Swap(nil); d != nil {
			errs = append(errs, d.Close())
		}
	}
	if d := r.objects.Swap(nil); d != nil {
		errs = append(errs, d.Close())
	}
	return errors.Join(append(errs, r.dir.Close())...)
}

// Path returns the name the repository was opened by.
func (r *Repository) Path() string { return r.dir.Path() }

// Dir returns the open directory, for mounting from it. It stays owned by r.
func (r *Repository) Dir() *durable.Dir { return r.dir }

// Algorithm returns the algorithm of all digests in the repository.
func (r *Repository) Algorithm() fsverity.Algorithm { return r.meta.Algorithm }

// Formats returns the EROFS formats that commits make, the default first.
func (r *Repository) Formats() []erofs.Version { return r.meta.EffectiveFormats().All() }

// Secure says whether every object must have fs-verity.
func (r *Repository) Secure() bool { return r.verity == verityRequired }

// Writable returns nil if the repository can be written, or why not: unknown
// features (*FeatureError), a read-only file system or mount (EROFS), missing
// permission (EACCES). Call it before any costly preparation.
func (r *Repository) Writable() error {
	if r.readOnly != nil {
		return r.readOnly
	}
	return r.dir.Writable()
}

// objectsDir returns objects/, or nil if it does not exist and make is false.
func (r *Repository) objectsDir(create bool) (*durable.Dir, error) {
	if d := r.objects.Load(); d != nil {
		return d, nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if d := r.objects.Load(); d != nil {
		return d, nil
	}
	d, err := subDir(r.dir, "objects", create)
	if d != nil {
		r.objects.Store(d)
	}
	return d, err
}

// shard returns objects/<b0>, or nil if it does not exist and make is false. The
// descriptors are kept: a pull stores thousands of objects in each.
func (r *Repository) shard(b0 byte, create bool) (*durable.Dir, error) {
	if d := r.shards[b0].Load(); d != nil {
		return d, nil
	}
	objects, err := r.objectsDir(create)
	if objects == nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if d := r.shards[b0].Load(); d != nil {
		return d, nil
	}
	d, err := subDir(objects, string([]byte{hexDigits[b0>>4], hexDigits[b0&15]}), create)
	if d != nil {
		r.shards[b0].Store(d)
	}
	return d, err
}

const hexDigits = "0123456789abcdef"

func subDir(parent *durable.Dir, name string, create bool) (*durable.Dir, error) {
	if create {
		return parent.MkdirAll(name, 0o755)
	}
	d, err := parent.Sub(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return d, err
}

// knownSet holds objects that this handle has stored or checked. Nothing removes
// objects while the shared lock is held. 32 bytes of a digest are enough to tell
// objects apart and keep the set small.
type knownSet struct {
	mu  sync.RWMutex
	set map[objectKey]uint32 // 0 for what was found, else the period in which it was stored
	// period counts from 1; what was stored before the first Begin has period 0, too.
	period uint32
}

type objectKey [32]byte

func knownKey(d fsverity.Digest) (k objectKey) {
	copy(k[:], d.Raw())
	return k
}

func (s *knownSet) has(d fsverity.Digest) bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	_, ok := s.set[knownKey(d)]
	return ok
}

func (s *knownSet) add(d fsverity.Digest, made bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.set == nil {
		s.set = make(map[objectKey]uint32)
	}
	k := knownKey(d)
	if made {
		s.set[k] = s.period
	} else if _, ok := s.set[k]; !ok { // two goroutines may store the same object
		s.set[k] = 0
	}
}

// nextPeriod begins a period.
func (s *knownSet) nextPeriod() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.period++
}

// made returns what was stored in this period.
func (s *knownSet) made() map[objectKey]struct{} {
	s.mu.RLock()
	defer s.mu.RUnlock()
	made := map[objectKey]struct{}{}
	for k, period := range s.set {
		if period == s.period && period != 0 {
			made[k] = struct{}{}
		}
	}
	return made
}

func (s *knownSet) forget() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.set = nil
}
