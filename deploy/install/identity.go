package install

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"strings"
)

// KeyError says why a file is no list of public SSH keys.
type KeyError struct {
	Line   int // 1 is the first; 0: the file as a whole
	Detail string
}

func (e *KeyError) Error() string {
	if e.Line == 0 {
		return "public SSH keys: " + e.Detail
	}
	return fmt.Sprintf("public SSH keys: line %d: %s", e.Line, e.Detail)
}

// MaxKeys is how many bytes a file of public keys may have.
const MaxKeys = 256 << 10

// CheckAuthorizedKeys refuses with a *KeyError what sshd would not take for its
// AuthorizedKeysFile: a machine that nobody can log in to is noticed too late. It
// returns the bytes with a line break at the end.
func CheckAuthorizedKeys(data []byte) ([]byte, error) {
	if len(data) > MaxKeys {
		return nil, &KeyError{Detail: fmt.Sprintf("%d bytes, want at most %d", len(data), MaxKeys)}
	}
	if bytes.Contains(data, []byte("PRIVATE KEY-----")) {
		return nil, &KeyError{Detail: "this is a private key, want the public one (the file whose name ends with .pub)"}
	}
	keys := 0
	for i, line := range strings.Split(string(data), "\n") {
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		if strings.ContainsAny(line, "\x00\r") {
			return nil, &KeyError{i + 1, "a NUL byte or carriage return"}
		}
		if !hasKey(line) {
			return nil, &KeyError{i + 1, fmt.Sprintf("%.40q is no public key (\"ssh-ed25519 AAAA… comment\")", line)}
		}
		keys++
	}
	if keys == 0 {
		return nil, &KeyError{Detail: "no key in it"}
	}
	if !bytes.HasSuffix(data, []byte("\n")) {
		data = append(bytes.Clone(data), '\n')
	}
	return data, nil
}

// hasKey looks for a key type that is followed by a key of this type in base64
// (RFC 4253, 6.6); options may stand before it.
func hasKey(line string) bool {
	fields := strings.Fields(line)
	for i := range len(fields) - 1 {
		blob, err := base64.StdEncoding.DecodeString(fields[i+1])
		if err != nil || len(blob) < 4 {
			continue
		}
		n := binary.BigEndian.Uint32(blob)
		if rest := blob[4:]; uint64(n) < uint64(len(rest)) && string(rest[:n]) == fields[i] && n > 0 {
			return true
		}
	}
	return false
}

// HostnameError says why a string is no name of a machine.
type HostnameError struct{ Name, Detail string }

func (e *HostnameError) Error() string { return fmt.Sprintf("hostname %q: %s", e.Name, e.Detail) }

// CheckHostname refuses with a *HostnameError what systemd would not accept in
// /etc/hostname (hostname(5)): up to 64 bytes, labels of letters, digits and
// hyphens.
func CheckHostname(name string) error {
	if name == "" || len(name) > 64 {
		return &HostnameError{name, fmt.Sprintf("%d bytes, want 1 to 64", len(name))}
	}
	for label := range strings.SplitSeq(name, ".") {
		switch {
		case label == "" || len(label) > 63:
			return &HostnameError{name, fmt.Sprintf("label %q has %d bytes, want 1 to 63", label, len(label))}
		case label[0] == '-' || label[len(label)-1] == '-':
			return &HostnameError{name, fmt.Sprintf("label %q begins or ends with a hyphen", label)}
		}
		for _, c := range label {
			if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '-' {
				return &HostnameError{name, fmt.Sprintf("character %q, want letters, digits and hyphens", c)}
			}
		}
	}
	return nil
}
