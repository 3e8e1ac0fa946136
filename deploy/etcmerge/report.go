package etcmerge

import (
	"encoding/json"
	"errors"
	"fmt"

	"github.com/cfsboot/cfsboot/erofs/tree"
)

const (
	// ReportSchema is the only schema of etc-merge.json.
	ReportSchema = "cfsboot.etc-merge/1"

	// ReportName is the report's name in the state directory of a deployment.
	ReportName = "etc-merge.json"

	maxReport = 64 << 20
)

// Action is what became of a path.
type Action string

// The actions.
const (
	KeptLocal Action = "kept-local" // the result is what the live directory has
	TookNew   Action = "took-new"   // the result is what the new image has
	Merged    Action = "merged"     // fields of both; of those that conflict the local ones
	Removed   Action = "removed"    // not in the result
	Skipped   Action = "skipped"    // the live file is not carried over
	Refused   Action = "refused"    // cannot be merged, see Conflict
	Noted     Action = "noted"      // nothing special was done
)

// Reason is why a path is in the report.
type Reason string

// The reasons.
const (
	BothChanged    Reason = "both-changed"      // local and new differ from pristine and from each other
	BothAdded      Reason = "both-added"        // not in pristine, different in the others
	RemovedLocally Reason = "removed-locally"   // and changed in the new image
	Orphan         Reason = "orphan"            // changed locally, gone from the new image
	TypeChanged    Reason = "type-changed"      // one side changed the type, the other something that does not fit it
	Special        Reason = "special-file"      // FIFO, socket or device
	HardLink       Reason = "hard-link"         // becomes files of its own
	Unmergeable    Reason = "directory-or-file" // a directory on one side, a file on the other
)

// Report is etc-merge.json: what a merge decided that somebody may want to know.
// Paths are relative to /etc, "." is /etc itself.
type Report struct {
	Schema      string `json:"schema"`      // ReportSchema
	From        string `json:"from"`        // deployment of the live /etc; set by the caller
	To          string `json:"to"`          // deployment that the result is for; set by the caller
	Transaction string `json:"transaction"` // set by the caller
	Fingerprint string `json:"fingerprint"` // of the live /etc, see Scan
	Counts      Counts `json:"counts"`
	Items       []Item `json:"items"` // in the order of the walk; not null
}

// Counts are numbers of paths. One that is in no number is as it was in all
// three sides.
type Counts struct {
	LocalAdded   int `json:"local_added"`   // by the administrator, carried over
	LocalChanged int `json:"local_changed"` // likewise, one field at least
	LocalRemoved int `json:"local_removed"` // likewise
	NewAdded     int `json:"new_added"`     // by the new image
	NewChanged   int `json:"new_changed"`
	NewRemoved   int `json:"new_removed"`
	Reported     int `json:"reported"` // number of items
}

// Item is one path of the report.
type Item struct {
	Path     string   `json:"path"`
	Action   Action   `json:"action"`
	Reason   Reason   `json:"reason"`
	Fields   []string `json:"fields,omitempty"` // that conflict: "content", "mode", "uid", "gid", "xattr NAME"
	Links    []string `json:"links,omitempty"`  // all paths of a hard link
	Pristine *Version `json:"pristine"`         // null: absent
	Current  *Version `json:"current"`
	New      *Version `json:"new"`
}

// Version describes a path on one side.
type Version struct {
	Type   string `json:"type"`
	Mode   string `json:"mode"` // four octal digits
	UID    uint32 `json:"uid"`
	GID    uint32 `json:"gid"`
	Size   int64  `json:"size_bytes"`       // of a regular file
	Digest string `json:"digest,omitempty"` // fs-verity digest of a regular file
	Target string `json:"target,omitempty"` // of a symlink
}

func (c comparer) version(n *tree.Node) *Version {
	if n == nil {
		return nil
	}
	v := &Version{Type: n.Kind.String(), Mode: fmt.Sprintf("%04o", n.Mode), UID: n.UID, GID: n.GID, Target: n.Target}
	if n.Kind == tree.Regular {
		v.Size, v.Digest = n.Size, c.contents(n).String()
	}
	return v
}

// Encode gives the bytes of the file.
func (r Report) Encode() ([]byte, error) {
	r.Schema = ReportSchema
	if r.Items == nil {
		r.Items = []Item{}
	}
	data, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return nil, err
	}
	return append(data, '\n'), nil
}

// ErrReport is wrapped by the errors of ParseReport.
var ErrReport = errors.New("bad " + ReportName)

// ParseReport reads the file.
func ParseReport(data []byte) (Report, error) {
	if len(data) > maxReport {
		return Report{}, fmt.Errorf("%w: %d bytes, want at most %d", ErrReport, len(data), maxReport)
	}
	var r Report
	if err := json.Unmarshal(data, &r); err != nil {
		return Report{}, fmt.Errorf("%w: %w", ErrReport, err)
	}
	if r.Schema != ReportSchema {
		return Report{}, fmt.Errorf("%w: schema %q, want %q", ErrReport, r.Schema, ReportSchema)
	}
	if r.Items == nil {
		r.Items = []Item{}
	}
	return r, nil
}
