package systemd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"strings"

	"github.com/klauspost/compress/zstd"
)

// scanZstd reads one zstd frame, which is what the kernel takes as one part.
func (c *initrdContent) scanZstd(r *io.SectionReader) (int64, error) {
	n, err := zstdFrameSize(r, r.Size())
	if err != nil {
		return 0, err
	}
	z, err := zstd.NewReader(io.NewSectionReader(r, 0, n), zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(128<<20))
	if err != nil {
		return 0, err
	}
	defer z.Close()
	return n, c.scanUncompressed(z)
}

// zstdFrameSize walks the blocks of the frame at byte 0 (RFC 8878, 3.1.1) and returns its length.
func zstdFrameSize(r io.ReaderAt, size int64) (int64, error) {
	var b [18]byte
	n, err := r.ReadAt(b[:], 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return 0, err
	}
	var h zstd.Header
	if err := h.Decode(b[:n]); err != nil {
		return 0, err
	}
	for pos := int64(h.HeaderSize); ; {
		var block [3]byte
		if _, err := r.ReadAt(block[:], pos); err != nil {
			return 0, fmt.Errorf("zstd block at byte %d: %w", pos, unexpected(err))
		}
		v := uint32(block[0]) | uint32(block[1])<<8 | uint32(block[2])<<16
		last, kind, length := v&1 == 1, v>>1&3, int64(v>>3)
		switch kind {
		case 1: // RLE: one byte
			length = 1
		case 3:
			return 0, fmt.Errorf("zstd block at byte %d has the reserved type", pos)
		}
		pos += 3 + length
		if last {
			if h.HasCheckSum {
				pos += 4
			}
			if pos > size {
				return 0, io.ErrUnexpectedEOF
			}
			return pos, nil
		}
	}
}

// externalTool decompresses what the standard library and our modules do not. Where such a stream ends in the file is
// not known: it has to be the last part.
type externalTool struct {
	name, magic string
	command     []string
}

var externalTools = []externalTool{
	{"xz", "\xfd7zXZ\x00", []string{"xz", "-dc", "--single-stream"}},
	{"lzma", "\x5d\x00\x00", []string{"xz", "-dc", "--format=lzma"}},
	{"bzip2", "BZh", []string{"bzip2", "-dc"}},
	{"lz4", "\x02\x21\x4c\x18", []string{"lz4", "-dc"}},
	{"lzo", "\x89LZO\x00\x0d", []string{"lzop", "-dc"}},
}

func (c *initrdContent) scanExternal(ctx context.Context, r io.Reader, t externalTool) error {
	if _, err := exec.LookPath(t.command[0]); err != nil {
		return fmt.Errorf("the program %s is needed to read it: %w", t.command[0], err)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	cmd := exec.CommandContext(ctx, t.command[0], t.command[1:]...)
	var stderr bytes.Buffer
	cmd.Stdin, cmd.Stderr = r, &stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	scanErr := c.scanUncompressed(out)
	if scanErr != nil {
		cancel()
	}
	if err := cmd.Wait(); err != nil && scanErr == nil {
		return fmt.Errorf("%s: %w: %s", strings.Join(t.command, " "), err, strings.TrimSpace(stderr.String()))
	}
	return scanErr
}
