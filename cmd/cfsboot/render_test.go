package main

import (
	"bytes"
	"encoding/json"
	"testing"
)

// TestJSONIsPrintable: what a terminal may obey is escaped, and stands for the same text.
func TestJSONIsPrintable(t *testing.T) {
	for text, want := range map[string]string{
		"a\u0080\u009b31m": "\"a\\u0080\\u009b31m\"\n", "\x7f\x1b": "\"\\u007f\\u001b\"\n", "\u202ex": "\"\\u202ex\"\n", "\U000e0041": "\"\\udb40\\udc41\"\n",
		"ü <&> 漢 🙂\n": "\"ü <&> 漢 🙂\\n\"\n",
	} {
		var b bytes.Buffer
		if err := writeJSON(&b, text); err != nil {
			t.Fatal(err)
		}
		if b.String() != want {
			t.Errorf("%q: got %q, want %q", text, b.String(), want)
		}
		var back string
		if err := json.Unmarshal(b.Bytes(), &back); err != nil || back != text {
			t.Errorf("%q comes back as %q, %v", text, back, err)
		}
	}
}

// TestCollectedLines: what was collected is counted in the words for one and for more.
func TestCollectedLines(t *testing.T) {
	var p page
	collected{ObjectsRemoved: 1, FreedBytes: 4096, ImagesPruned: 1, StreamsPruned: 2, TemporariesRemoved: 1, ObjectsKept: 1, ImagesKept: 2, StreamsKept: 1}.lines(&p)
	want := "removed: 1 object, 4.0 KiB, and the names of 1 image and 2 streams\n" +
		"removed: 1 file of programs that were killed\nkept: 1 object, 2 images, 1 stream\n"
	if got := p.text.String(); got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}
