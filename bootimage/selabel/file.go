package selabel

import (
	"errors"
	"fmt"
	"iter"
	"strings"
	"unicode"
	"unicode/utf8"
)

// none is the context of a spec that takes the label away.
const none = "<<none>>"

// word is a run of characters that are not white space, and the byte at which it
// starts in its line, counted from 0.
type word struct {
	text string
	at   int
}

// split returns the words of a line, at most limit of them. White space is that of
// Unicode, as in composefs-rs.
func split(line string, limit int) []word {
	var words []word
	for at := 0; len(words) < limit; {
		rest := line[at:]
		start := strings.IndexFunc(rest, func(r rune) bool { return !unicode.IsSpace(r) })
		if start < 0 {
			break
		}
		at, rest = at+start, rest[start:]
		end := strings.IndexFunc(rest, unicode.IsSpace)
		if end < 0 {
			end = len(rest)
		}
		words = append(words, word{rest[:end], at})
		at += end
	}
	return words
}

// lines yields the words of each line of a file that is neither blank nor a
// comment, or the error that stops the reading.
func lines(file string, data []byte, limit int) iter.Seq2[[]word, *FormatError] {
	return func(yield func([]word, *FormatError) bool) {
		number := 0
		for line := range strings.Lines(string(data)) {
			number++
			bad := &FormatError{File: file, Line: number}
			if !utf8.ValidString(line) {
				bad.Column, bad.Detail = invalidUTF8(line)+1, "not UTF-8"
				yield(nil, bad)
				return
			}
			words := split(line, limit)
			if len(words) == 0 || words[0].text[0] == '#' {
				continue
			}
			if !yield(words, bad) {
				return
			}
		}
	}
}

// invalidUTF8 returns the index of the first byte of s that is not UTF-8.
func invalidUTF8(s string) int {
	for i, r := range s {
		if _, size := utf8.DecodeRuneInString(s[i:]); r == utf8.RuneError && size == 1 {
			return i
		}
	}
	return len(s)
}

// readSpecs adds the specs of a file: EXPRESSION [-T] CONTEXT.
func (p *Policy) readSpecs(file string, data []byte) error {
	if len(data) > MaxFile {
		return &LimitError{"bytes in " + file, MaxFile}
	}
	for words, bad := range lines(file, data, 4) {
		if words == nil {
			return bad
		}
		if len(p.contexts) == maxSpecs {
			return &LimitError{"lines in file_contexts", maxSpecs}
		}
		if at, detail := p.readSpec(words); detail != nil {
			var limit *LimitError
			if errors.As(detail, &limit) {
				return limit
			}
			bad.Column, bad.Detail = at+1, detail.Error()
			return bad
		}
	}
	return nil
}

// readSpec adds one spec. An error comes with the byte of the line it is about.
func (p *Policy) readSpec(words []word) (at int, err error) {
	place, context := anyType, 1
	if len(words) > 1 && words[1].text[0] == '-' {
		letter := words[1].text[1:]
		place, context = strings.Index(types, letter), 2
		if len(letter) != 1 || place < 0 {
			return words[1].at, fmt.Errorf("file type %q, want one of -b -c -d -p -l -s --", words[1].text)
		}
	}
	switch last := words[len(words)-1]; {
	case len(words) <= context:
		return last.at + len(last.text), errors.New("the context is missing")
	case len(words) > context+1:
		return words[context+1].at, errors.New("more words than an expression, a type and a context")
	case len(last.text) > maxContext:
		return last.at, fmt.Errorf("a context of %d bytes, limit %d", len(last.text), maxContext)
	case len(words[0].text) > maxExpression:
		return words[0].at, fmt.Errorf("an expression of %d bytes, limit %d", len(words[0].text), maxExpression)
	}
	if err := p.add(words[0].text, int32(len(p.contexts)), place); err != nil {
		var se *syntaxError
		if errors.As(err, &se) {
			return words[0].at + se.at, err
		}
		return words[0].at, err
	}
	p.contexts = append(p.contexts, words[context].text)
	p.dfa.places = append(p.dfa.places, uint8(place))
	return 0, nil
}

// readAliases adds the aliases of a file: ALIAS TARGET. A later one replaces an
// earlier one.
func (p *Policy) readAliases(file string, data []byte) error {
	if len(data) > MaxFile {
		return &LimitError{"bytes in " + file, MaxFile}
	}
	for words, bad := range lines(file, data, 3) {
		switch {
		case words == nil:
			return bad
		case len(words) != 2:
			bad.Column, bad.Detail = words[0].at+1, "want two words, an alias and its target"
			return bad
		case !plainPath(words[1].text):
			bad.Column, bad.Detail = words[1].at+1, fmt.Sprintf("%q is no plain path to continue below", words[1].text)
			return bad
		case len(p.aliases) == maxAliases:
			return &LimitError{"aliases", maxAliases}
		}
		p.aliases[words[0].text] = words[1].text
	}
	return nil
}

// plainPath reports whether composefs-rs puts every entry of a directory that is
// aliased to path below it in the same way. It does not for "a//" and "a/.": there
// the first entry gets another path than the second.
func plainPath(path string) bool {
	path = strings.TrimSuffix(strings.TrimPrefix(path, "/"), "/")
	if path == "" {
		return true
	}
	for part := range strings.SplitSeq(path, "/") {
		if part == "" || part == "." || part == ".." {
			return false
		}
	}
	return true
}

// PolicyType returns the value of the first SELINUXTYPE line of
// /etc/selinux/config, in any case of letters, and whether there is one. SELINUX=
// plays no role: it is about the running system. It is an error if the type cannot
// be the name of a folder, or if a line up to it is not UTF-8.
func PolicyType(config []byte) (name string, ok bool, err error) {
	number := 0
	for line := range strings.Lines(string(config)) {
		number++
		if !utf8.ValidString(line) {
			return "", false, &FormatError{"config", number, invalidUTF8(line) + 1, "not UTF-8"}
		}
		key, value, found := strings.Cut(line, "=")
		if !found || !equalFoldASCII(strings.TrimSpace(key), "SELINUXTYPE") {
			continue
		}
		name = strings.TrimSpace(value)
		if name == "" || name == "." || name == ".." || strings.ContainsAny(name, "/\x00") || len(name) > 255 {
			return "", false, &FormatError{"config", number, len(key) + 2, fmt.Sprintf("SELINUXTYPE %q is no name of a folder", name)}
		}
		return name, true, nil
	}
	return "", false, nil
}

// equalFoldASCII is strings.EqualFold for a want of ASCII letters. The latter would
// take U+017F for an S.
func equalFoldASCII(s, want string) bool {
	return len(s) == len(want) && strings.EqualFold(s, want)
}
