package progress

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"unicode"
)

// FormatBytes renders a size for people: bytes up to 1023, then one decimal in
// KiB, MiB, GiB or TiB.
func FormatBytes(n int64) string { return FormatSize(n, 1) }

// FormatSize is FormatBytes with another number of decimals.
func FormatSize(n int64, decimals int) string {
	if n < 1024 && n > -1024 {
		return strconv.FormatInt(n, 10) + " B"
	}
	f, unit := float64(n)/1024, "KiB"
	for _, u := range []string{"MiB", "GiB", "TiB"} {
		if limit := 1024 - 0.5*math.Pow10(-decimals); f < limit && f > -limit {
			break
		}
		f, unit = f/1024, u
	}
	return fmt.Sprintf("%.*f %s", decimals, f, unit)
}

// Count renders a number of things: "1 object", "2 objects".
func Count(n int, thing string) string {
	if n != 1 {
		thing += "s"
	}
	return strconv.Itoa(n) + " " + thing
}

func formatAmount(n int64, u Unit) string {
	if u == Bytes {
		return FormatBytes(n)
	}
	return strconv.FormatInt(n, 10)
}

// state is what a renderer knows of an active component.
type state struct {
	name  string
	unit  Unit
	total int64
	done  int64
}

// percent is -1 if the total is unknown.
func (s *state) percent() int64 {
	if s.total <= 0 {
		return -1
	}
	done := min(max(s.done, 0), s.total)
	return int64(float64(done) / float64(s.total) * 100)
}

func (s *state) amount() string {
	if s.total <= 0 {
		return formatAmount(s.done, s.unit)
	}
	return fmt.Sprintf("%s of %s, %d%%", formatAmount(s.done, s.unit), formatAmount(s.total, s.unit), s.percent())
}

// Printable makes one line of a text: control and formatting characters, line
// breaks among them, become question marks. Names that come from outside (tags,
// labels, registry messages) must not steer the terminal.
func Printable(s string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, s)
}
