package qemu

import (
	"context"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// Shell runs commands through a root login on a machine's console.
type Shell struct {
	c     *Console
	count int
}

// Login waits for the login prompt and logs in as root.
func (m *Machine) Login(ctx context.Context, limit time.Duration, password string) (*Shell, error) {
	c := m.Console
	if _, _, err := c.Expect(ctx, limit, `(?m)^\S+ login: $`); err != nil {
		return nil, err
	}
	for _, s := range []struct{ send, want string }{
		{"root\n", `Password: $`},
		{password + "\n", `[#$] $`},
		// A plain shell: no line editing, no prompt, no echo, no colours.
		{"exec env TERM=dumb PS1= PS2= HISTFILE= sh\n", `\n`},
		{"stty -echo -onlcr cols 10000; dmesg -n 1; echo log''ged-in\n", `logged-in\n`},
	} {
		if err := c.Send(s.send); err != nil {
			return nil, err
		}
		i, text, err := c.Expect(ctx, limit, s.want, `Login incorrect`)
		if err != nil {
			return nil, err
		}
		if i == 1 {
			return nil, fmt.Errorf("login refused: %q", text)
		}
	}
	return &Shell{c: c}, nil
}

// Result is what a command did.
type Result struct {
	Output string // standard output and standard error
	Status int
}

// Run runs a shell command and waits for its end.
func (s *Shell) Run(ctx context.Context, limit time.Duration, command string) (Result, error) {
	if err := s.Start(command); err != nil {
		return Result{}, err
	}
	return s.Finish(ctx, limit)
}

// Start types a command. Its output can be seen with Console.Expect; Finish has
// to be called before the next command.
func (s *Shell) Start(command string) error {
	s.count++
	// The marks are not in the command as typed, in case something echoes it.
	line := fmt.Sprintf("printf '\\n@%%s-%d@\\n' BEGIN; { %s\n} </dev/null 2>&1; printf '\\n@%%s-%d %%d@\\n' END $?\n", s.count, command, s.count)
	return s.c.Send(line)
}

// Finish waits for the end of the command that Start typed.
func (s *Shell) Finish(ctx context.Context, limit time.Duration) (Result, error) {
	end := fmt.Sprintf(`\n@END-%d (\d+)@\n`, s.count)
	_, text, err := s.c.Expect(ctx, limit, end)
	if err != nil {
		return Result{}, err
	}
	m := regexp.MustCompile(end).FindStringSubmatchIndex(text)
	status, err := strconv.Atoi(text[m[2]:m[3]])
	if err != nil {
		return Result{}, err
	}
	out := text[:m[0]]
	begin := fmt.Sprintf("\n@BEGIN-%d@\n", s.count)
	if i := strings.Index(out, begin); i >= 0 {
		out = out[i+len(begin):]
	}
	if out != "" && !strings.HasSuffix(out, "\n") {
		out += "\n"
	}
	return Result{Output: out, Status: status}, nil
}

// Must is Run for commands that have to succeed.
func (s *Shell) Must(ctx context.Context, limit time.Duration, command string) (string, error) {
	r, err := s.Run(ctx, limit, command)
	if err != nil {
		return "", fmt.Errorf("%s: %w", command, err)
	}
	if r.Status != 0 {
		return r.Output, fmt.Errorf("%s: exit status %d\n%s", command, r.Status, r.Output)
	}
	return r.Output, nil
}
