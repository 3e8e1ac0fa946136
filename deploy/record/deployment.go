package record

import (
	"encoding/json"
	"fmt"
	"strings"
	"time"
)

const (
	// DeploymentSchema is the only schema of deployment.json.
	DeploymentSchema = "cfsboot.deployment/1"

	// DeploymentName is the file's name in the state directory of a deployment.
	DeploymentName = "deployment.json"

	// StateDir holds one directory a deployment, named by its id, below the root
	// file system's top.
	StateDir = "state/deploy"

	whatDeployment = "deployment.json"
	maxDeployment  = 256 << 10
)

// Deployment is deployment.json: where a deployment comes from and what it
// boots. It is written once, before the deployment is staged.
type Deployment struct {
	Schema         string     `json:"schema"`          // DeploymentSchema
	ID             string     `json:"id"`              // of the boot image, lower-case hex
	PlainID        string     `json:"plain_id"`        // of the plain image
	Reference      string     `json:"reference"`       // as ImageReference.String gives it
	ManifestDigest string     `json:"manifest_digest"` // of the platform manifest
	IndexDigest    string     `json:"index_digest"`    // "" if the reference names no index
	ConfigDigest   string     `json:"config_digest"`
	Architecture   string     `json:"architecture"`  // GOARCH spelling, as in the image's config
	ImageVersion   string     `json:"image_version"` // org.opencontainers.image.version, "" if not set
	ImageCreated   string     `json:"image_created"` // RFC 3339, "" if not set
	OSID           string     `json:"os_id"`         // os-release
	OSVersion      string     `json:"os_version"`
	Title          string     `json:"title"`
	Kernel         string     `json:"kernel"`      // release, the name below /usr/lib/modules
	BootType       string     `json:"boot_type"`   // "bls"
	BootDigest     string     `json:"boot_digest"` // names the payload on the boot partition
	BootFiles      []BootFile `json:"boot_files"`  // its files; empty: nobody wrote down their sizes
	Options        string     `json:"options"`     // kernel command line of the entry
	Kargs          []Karg     `json:"kargs"`       // its arguments, repeated ones included; empty: nobody wrote down where they come from
	Insecure       bool       `json:"insecure"`    // '?' in the karg: fs-verity is not enforced
	Transaction    string     `json:"transaction"`
	Created        time.Time  `json:"created"` // of the deployment, UTC
}

// BootFile is a file of a payload.
type BootFile struct {
	Name string `json:"name"`
	Size int64  `json:"size"` // bytes
}

// Encode gives the bytes of the file, or a *FormatError if ParseDeployment
// would refuse them. An empty Schema becomes DeploymentSchema.
func (d Deployment) Encode() ([]byte, error) {
	if d.Schema == "" {
		d.Schema = DeploymentSchema
	}
	if d.Kargs == nil {
		d.Kargs = []Karg{}
	}
	if d.BootFiles == nil {
		d.BootFiles = []BootFile{}
	}
	d.Created = d.Created.UTC().Truncate(time.Second)
	if err := d.check(); err != nil {
		return nil, err
	}
	data, err := json.MarshalIndent(d, "", "  ")
	if err != nil {
		return nil, &FormatError{What: whatDeployment, Detail: err.Error()}
	}
	return append(data, '\n'), nil
}

// ParseDeployment reads the file. Errors are *FormatError.
func ParseDeployment(data []byte) (Deployment, error) {
	var d Deployment
	if err := decodeJSON(whatDeployment, data, maxDeployment, &d); err != nil {
		return Deployment{}, err
	}
	return d, d.check()
}

func (d Deployment) check() error {
	fail := func(field, format string, args ...any) error {
		return &FormatError{whatDeployment, field, fmt.Sprintf(format, args...)}
	}
	switch {
	case d.Schema != DeploymentSchema:
		return fail("schema", "%q, want %q", d.Schema, DeploymentSchema)
	case !isDigest(d.ID):
		return fail("id", "%s", badDigest(d.ID))
	case !isDigest(d.PlainID):
		return fail("plain_id", "%s", badDigest(d.PlainID))
	case len(d.PlainID) != len(d.ID):
		return fail("plain_id", "%d hex digits, want %d as in the id", len(d.PlainID), len(d.ID))
	case !isOCIDigest(d.ManifestDigest):
		return fail("manifest_digest", "%q, want sha256:<64 hex digits>", d.ManifestDigest)
	case d.IndexDigest != "" && !isOCIDigest(d.IndexDigest):
		return fail("index_digest", "%q, want sha256:<64 hex digits>", d.IndexDigest)
	case !isOCIDigest(d.ConfigDigest):
		return fail("config_digest", "%q, want sha256:<64 hex digits>", d.ConfigDigest)
	case d.BootType != "bls" && d.BootType != "uki":
		return fail("boot_type", "%q, want bls or uki", d.BootType)
	case len(d.BootDigest) != 64 || !isLowerHex(d.BootDigest):
		return fail("boot_digest", "%q, want 64 lower-case hex digits", d.BootDigest)
	case d.Created.IsZero():
		return fail("created", "missing")
	}
	for i, x := range d.BootFiles {
		if x.Name == "" || strings.ContainsAny(x.Name, "/\x00") || x.Name[0] == '.' || x.Size < 0 {
			return fail(fmt.Sprintf("boot_files[%d]", i), "%q of %d bytes, want the name of a file and its size", x.Name, x.Size)
		}
	}
	if _, err := ParseImageReference(d.Reference); err != nil {
		return fail("reference", "%v", err)
	}
	return nil
}
