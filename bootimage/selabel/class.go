package selabel

// byteSet is a set of bytes.
type byteSet [4]uint64

func (s *byteSet) add(b byte)     { s[b>>6] |= 1 << (b & 63) }
func (s byteSet) has(b byte) bool { return s[b>>6]&(1<<(b&63)) != 0 }

func (s *byteSet) addRange(lo, hi byte) {
	for b := int(lo); b <= int(hi); b++ {
		s.add(byte(b))
	}
}

func (s *byteSet) union(o byteSet) {
	for i := range s {
		s[i] |= o[i]
	}
}

func (s *byteSet) negate() {
	for i := range s {
		s[i] = ^s[i]
	}
}

// fold adds the other case of each ASCII letter. Other bytes have none: neither
// engine of composefs-rs is in Unicode mode.
func (s *byteSet) fold() {
	for b := byte('a'); b <= 'z'; b++ {
		if s.has(b) || s.has(b-'a'+'A') {
			s.add(b)
			s.add(b - 'a' + 'A')
		}
	}
}

// ranges makes a set of pairs of first and last bytes.
func ranges(pairs string) byteSet {
	var s byteSet
	for i := 0; i < len(pairs); i += 2 {
		s.addRange(pairs[i], pairs[i+1])
	}
	return s
}

// The classes of [[:NAME:]]. Both engines have these, with these bytes.
var named = map[string]byteSet{
	"alnum":  ranges("09AZaz"),
	"alpha":  ranges("AZaz"),
	"ascii":  ranges("\x00\x7f"),
	"blank":  ranges("\t\t  "),
	"cntrl":  ranges("\x00\x1f\x7f\x7f"),
	"digit":  ranges("09"),
	"graph":  ranges("!~"),
	"lower":  ranges("az"),
	"print":  ranges(" ~"),
	"punct":  ranges("!/:@[`{~"),
	"space":  ranges("\t\r  "),
	"upper":  ranges("AZ"),
	"word":   ranges("09AZaz__"),
	"xdigit": ranges("09AFaf"),
}

var (
	// dot is the "." of the automaton: every byte but NUL, since the line
	// terminator is set to NUL there.
	dot = negated(ranges("\x00\x00"))
	// dotLine is the "." of PCRE2.
	dotLine  = negated(ranges("\n\n"))
	anyByte  = ranges("\x00\xff")
	wordSet  = named["word"]
	perlSets = map[byte]byteSet{
		'd': named["digit"], 'D': negated(named["digit"]),
		's': named["space"], 'S': negated(named["space"]),
		'w': named["word"], 'W': negated(named["word"]),
	}
)

func negated(s byteSet) byteSet {
	s.negate()
	return s
}
