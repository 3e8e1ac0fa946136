package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"strings"
	"time"

	"golang.org/x/term"

	"github.com/cfsboot/cfsboot/deploy"
	"github.com/cfsboot/cfsboot/internal/durable"
	"github.com/cfsboot/cfsboot/internal/progress"
	"github.com/cfsboot/cfsboot/repo"
)

// lockWait is how long a command waits for another one that holds the repository before it gives up with status 7.
const lockWait = 10 * time.Second

// env is what commands share: streams, global flags, the logger and the progress display.
type env struct {
	stdin, stdout, stderr *os.File
	euid                  int // of the user who runs the command

	opts struct {
		repo, progress       string
		json, quiet, verbose bool
	}
	room     string // what to do if space is lacking: one of the room constants
	logger   *slog.Logger
	renderer progress.Renderer
}

func newEnv(stdin, stdout, stderr *os.File) *env {
	return &env{stdin: stdin, stdout: stdout, stderr: stderr, euid: os.Geteuid(), room: roomOfRepository, logger: slog.New(slog.DiscardHandler)}
}

// start makes logger and progress display after the flags are known.
func (e *env) start() error {
	if e.opts.verbose {
		e.logger = slog.New(e.logHandler(slog.LevelDebug))
	} else if !e.opts.quiet {
		e.logger = slog.New(e.logHandler(slog.LevelWarn))
	}
	mode := e.opts.progress
	switch {
	case e.opts.quiet:
		mode = "none"
	case mode != "auto":
	case e.opts.json: // standard error is for the error then
		mode = "none"
	case term.IsTerminal(int(e.stderr.Fd())):
		mode = "tty"
	default:
		mode = "plain"
	}
	switch mode {
	case "tty":
		width, _, err := term.GetSize(int(e.stderr.Fd()))
		if err != nil {
			width = 80
		}
		e.renderer = progress.NewTerminal(e.stderr, width, time.Now)
	case "plain":
		e.renderer = progress.NewPlain(e.stderr, time.Now)
	case "json":
		e.renderer = progress.NewJSON(e.stderr, time.Now)
	case "none":
	default:
		return usageError{"cfsboot", fmt.Errorf("--progress must be auto, tty, plain, json or none, got %q", mode)}
	}
	return nil
}

// jsonLines reports whether everything on standard error is one JSON object a line.
func (e *env) jsonLines() bool { return e.opts.json || e.opts.progress == "json" }

// logHandler writes log records to standard error, in the form of what else is there.
func (e *env) logHandler(level slog.Level) slog.Handler {
	opts := &slog.HandlerOptions{Level: level}
	if e.jsonLines() {
		return slog.NewJSONHandler(e.stderr, opts)
	}
	return slog.NewTextHandler(logWriter{e}, opts)
}

// logWriter keeps log lines apart from what the progress display draws on a terminal.
type logWriter struct{ e *env }

func (w logWriter) Write(p []byte) (int, error) {
	if t, ok := w.e.renderer.(*progress.Terminal); ok {
		t.Event(progress.Message{Text: strings.TrimRight(string(p), "\n")})
		return len(p), nil
	}
	return w.e.stderr.Write(p)
}

// finish ends the progress display.
func (e *env) finish() {
	if e.renderer != nil {
		e.renderer.Close()
		e.renderer = nil
	}
}

// reporter returns the progress display, or nil without one.
func (e *env) reporter() progress.Reporter {
	if e.renderer == nil {
		return nil
	}
	return e.renderer
}

// repoPath is the repository that --repo names, else the default of the user who runs the command.
func (e *env) repoPath() (string, error) {
	if e.opts.repo != "" {
		return e.opts.repo, nil
	}
	path, err := repo.DefaultPath(os.Geteuid(), os.Getenv("HOME"))
	if err != nil {
		return "", fmt.Errorf("%w; name one with --repo PATH", err)
	}
	return path, nil
}

// withRepo opens the repository, calls f and closes it.
func (e *env) withRepo(ctx context.Context, f func(*repo.Repository) error) (err error) {
	path, err := e.repoPath()
	if err != nil {
		return err
	}
	dir, err := durable.OpenDir(path)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("no repository at %s: %w; create one with cfsboot repo init --repo PATH, or name another with --repo", path, err)
	}
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, dir.Close()) }()
	r, err := repo.Open(ctx, dir, repo.Options{Logger: e.logger, LockWait: lockWait})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	if own, _ := repo.DefaultPath(0, ""); path == own {
		if _, err := deploy.ReadBooted("/"); err == nil {
			e.room = roomOfMachine
		}
	}
	return f(r)
}
