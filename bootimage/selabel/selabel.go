// Package selabel answers which SELinux label a policy gives to a file: it reads
// the text files of /etc/selinux/TYPE/contexts/files and matches paths.
//
// Words: a spec is one line of file_contexts, an expression with an optional file
// type and a context; an alias is one line of file_contexts.subs; the subject is a
// path followed by the letter of its file type, the form in which composefs-rs
// 0.9.4 matches. The answers are those of composefs-rs, bit for bit, because they
// are part of the boot image and thus of its ID (docs/design/selabel.md). They are
// not always those of libselinux: here the last spec in load order wins and aliases
// apply at every component of a path.
//
// Expressions are matched by a lazily built DFA over all of them at once; the few
// with a look-around, an atomic group or a word boundary by a backtracking matcher
// that visits no state twice. An expression that composefs-rs would read in a way
// that is not implemented here is an error, never a guess: a wrong label would be
// another image under a permanent name.
//
// Not done here: walking a tree (package bootimage), reading compiled policies.
//
// A Policy fills its tables while it is used: one goroutine at a time.
package selabel

import (
	"fmt"
	"strings"
)

// Limits on what a policy may hold. Real ones have 6000 to 8000 specs in 500 KiB.
const (
	MaxFile       = 32 << 20 // bytes of one file
	maxSpecs      = 200_000  // of all files
	maxAliases    = 10_000
	maxContext    = 4096     // bytes of a context
	maxExpression = 16_384   // bytes of an expression
	maxProgram    = 20_000   // instructions of one expression
	maxPrograms   = 4 << 20  // instructions of all of them
	maxNesting    = 60       // groups; composefs-rs changes the engine at about 80
	maxStateBytes = 96 << 20 // of the tables of the DFA
	maxBits       = 64 << 20 // pairs of instruction and position in one backtracking search
	maxWork       = 2 << 30  // instructions visited, over the life of a Policy
)

// Type is the letter by which a spec and a subject name a file type.
type Type byte

// The file types of selabel_file(5).
const (
	Regular     Type = '-'
	Directory   Type = 'd'
	Symlink     Type = 'l'
	CharDevice  Type = 'c'
	BlockDevice Type = 'b'
	Fifo        Type = 'p'
	Socket      Type = 's'
)

// types gives each Type its place in tables; anyType is the place of specs without
// a type.
const (
	types   = "-dlcbps"
	anyType = len(types)
)

// Files are the texts of a policy, each with the name it has in the folder
// contexts/files. Nil means that the file is absent, which only Contexts must not be.
type Files struct {
	Contexts []byte // file_contexts
	Local    []byte // file_contexts.local
	Homedirs []byte // file_contexts.homedirs
	Subs     []byte // file_contexts.subs
	SubsDist []byte // file_contexts.subs_dist
}

// FormatError says what is wrong with a line of a policy.
type FormatError struct {
	File   string // for example "file_contexts.local"
	Line   int    // counted from 1
	Column int    // byte of the line where the trouble starts, counted from 1
	Detail string
}

func (e *FormatError) Error() string {
	return fmt.Sprintf("%s line %d, column %d: %s", e.File, e.Line, e.Column, e.Detail)
}

// LimitError says that a policy needs more memory or time than any real one does.
type LimitError struct {
	What  string // what there is too much of, in words
	Limit int64
}

func (e *LimitError) Error() string { return fmt.Sprintf("more than %d %s", e.Limit, e.What) }

// Policy gives labels to paths.
type Policy struct {
	contexts []string // by spec, in load order
	aliases  map[string]string
	literals map[string]places // specs that match one path
	dfa      dfa
	slow     []expression // ascending by spec
	code     program
	search   search
	work     int64 // instructions visited
	limit    int64 // of work
}

// places holds the number of a spec for each type; -1 means none.
type places [len(types)]int32

var noPlaces = places{-1, -1, -1, -1, -1, -1, -1}

// add notes that spec matches subjects of the type at the given place of types, or
// of every type if place is anyType.
func (p *places) add(spec int32, place int) {
	if place != anyType {
		p[place] = max(p[place], spec)
		return
	}
	for i := range p {
		p[i] = max(p[i], spec)
	}
}

// Parse reads a policy. Errors are *FormatError, with the first bad line, and
// *LimitError.
func Parse(f Files) (*Policy, error) {
	p := &Policy{aliases: make(map[string]string), literals: make(map[string]places), limit: maxWork}
	for _, file := range []struct {
		name string
		data []byte
	}{{"file_contexts", f.Contexts}, {"file_contexts.local", f.Local}, {"file_contexts.homedirs", f.Homedirs}} {
		if err := p.readSpecs(file.name, file.data); err != nil {
			return nil, err
		}
	}
	for _, file := range []struct {
		name string
		data []byte
	}{{"file_contexts.subs", f.Subs}, {"file_contexts.subs_dist", f.SubsDist}} {
		if err := p.readAliases(file.name, file.data); err != nil {
			return nil, err
		}
	}
	p.dfa.code, p.dfa.limit = &p.code, maxStateBytes
	return p, nil
}

// Alias returns the path to go on with instead of path: the target of the alias
// that is equal to it, or path. A walk asks for the root never, for everything else
// once, with the path that its parent directory was given.
func (p *Policy) Alias(path string) string {
	if to, ok := p.aliases[path]; ok {
		return to
	}
	return path
}

// Lookup returns the label of the file at path, "" if it has none. The error is a
// *LimitError: the expressions are such that matching takes too long.
func (p *Policy) Lookup(path string, t Type) (string, error) {
	place := strings.IndexByte(types, byte(t))
	if place < 0 {
		return "", fmt.Errorf("no file type %q", string(rune(t)))
	}
	if p.work > p.limit {
		return "", p.tired()
	}
	best, ok := p.dfa.match(path, place, &p.work, p.limit)
	if !ok {
		return "", p.tired()
	}
	if lit, ok := p.literals[path]; ok {
		best = max(best, lit[place])
	}
	for i := len(p.slow) - 1; i >= 0 && p.slow[i].spec > best; i-- {
		x := &p.slow[i]
		if x.place != anyType && x.place != place || !strings.HasPrefix(path, x.prefix) {
			continue
		}
		matched, ok := p.search.match(&p.code, x, path, byte(t), &p.work, p.limit)
		if !ok {
			return "", p.tired()
		}
		if matched {
			best = x.spec
		}
	}
	if best < 0 || p.contexts[best] == none {
		return "", nil
	}
	return p.contexts[best], nil
}

// tired is the error of a path that cannot be matched within the limits.
func (p *Policy) tired() error {
	p.work = p.limit + 1 // for good: what follows would depend on the order of calls
	if p.search.large {
		return &LimitError{"places to visit for one expression and path", maxBits}
	}
	return &LimitError{"steps to match the paths of the image", p.limit}
}
