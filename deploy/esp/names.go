package esp

// minDigits is the length of the shortest digest in hex.
const minDigits = 64

// Names is what a file may name by its digest: the runs of hex digits in it that are
// as long as a digest. The zero value is that of a file of which nobody knows.
type Names struct {
	known bool
	runs  string // in lower case, each behind a space
}

// NamesIn finds the names in the content of a file.
func NamesIn(data []byte) Names {
	f := digitRuns{limit: maxKept}
	_, _ = f.Write(data) // it has no error
	return f.names()
}

// digitRuns collects Names from what is written to it.
type digitRuns struct {
	limit int64 // of runs, in bytes; what has more is not known
	runs  []byte
	run   []byte // the digits at the end, until they are enough for runs
	in    bool   // the end belongs to the last of runs
	full  bool
}

// Write never fails.
func (f *digitRuns) Write(p []byte) (int, error) {
	for _, c := range p {
		digit := hexDigit[c]
		switch {
		case f.full:
			return len(p), nil
		case digit == 0:
			f.run, f.in = f.run[:0], false
		case f.in:
			f.runs = append(f.runs, digit)
		default:
			if f.run = append(f.run, digit); len(f.run) == minDigits {
				f.runs = append(append(f.runs, ' '), f.run...)
				f.in = true
			}
		}
		if int64(len(f.runs)) > f.limit {
			f.full, f.runs = true, nil
		}
	}
	return len(p), nil
}

func (f *digitRuns) names() Names {
	if f.full {
		return Names{}
	}
	return Names{true, string(f.runs)}
}

// hexDigit is the hex digit that a byte is, in lower case, or 0.
var hexDigit = func() (t [256]byte) {
	for _, c := range []byte("0123456789abcdef") {
		t[c] = c
	}
	for _, c := range []byte("ABCDEF") {
		t[c] = c + 'a' - 'A'
	}
	return t
}()
