package vm_test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cfsboot/cfsboot/tests/vm/lab"
	"github.com/cfsboot/cfsboot/tests/vm/osimage"
	"github.com/cfsboot/cfsboot/tests/vm/qemu"
)

// The operations that are cut, in the order of one round.
var cutOperations = []string{"upgrade", "finalize", "rollback", "delete"}

// cuts is a machine whose power fails at random moments.
type cuts struct {
	t      *testing.T
	l      *lab.Lab
	m      *lab.Machine
	sh     *qemu.Shell
	follow *lab.Channel
	random *rand.Rand
	window map[string]time.Duration // how long each operation takes, as far as is known
	found  map[string]map[string]int
	good   osimage.Release // runs, alone on the machine, at the beginning and at the end of each round
}

// TestVMPowerCuts kills QEMU at random moments of upgrade, finalize, rollback and
// delete, one of each in every round. After each cut the machine has to boot, the
// command is repeated, and the machine has to be as if nothing had happened.
//
// It takes long: "make vm-powercuts" sets CFSBOOT_VM_CUTS to ten rounds, make test
// does without (TestVMKilled has fixed moments). CFSBOOT_VM_SEED repeats the moments of an earlier run.
func TestVMPowerCuts(t *testing.T) {
	t.Parallel()
	rounds, err := strconv.Atoi(getenv("CFSBOOT_VM_CUTS", "0"))
	if err != nil {
		t.Fatalf("CFSBOOT_VM_CUTS: %v", err)
	}
	if rounds == 0 {
		t.Skip("many boots: CFSBOOT_VM_CUTS is not set")
	}
	l := openLab(t)
	seed := cutSeed(t)
	// Two machines share the rounds of a long run.
	machines := min(rounds, 2)
	for i := range machines {
		mine := (rounds + i) / machines
		t.Run(fmt.Sprintf("machine %d", i+1), func(t *testing.T) {
			t.Parallel()
			cutRounds(t, l, fmt.Sprintf("cuts-%d", i+1), rand.New(rand.NewPCG(seed, uint64(i))), mine)
		})
	}
}

// cutSeed is what the random moments come from.
func cutSeed(t *testing.T) uint64 {
	t.Helper()
	seed, err := strconv.ParseUint(getenv("CFSBOOT_VM_SEED", strconv.FormatUint(rand.Uint64(), 10)), 10, 64)
	if err != nil {
		t.Fatalf("CFSBOOT_VM_SEED: %v", err)
	}
	t.Logf("CFSBOOT_VM_SEED=%d", seed)
	return seed
}

func newCuts(t *testing.T, l *lab.Lab, follow *lab.Channel, random *rand.Rand) *cuts {
	return &cuts{
		t: t, l: l, follow: follow, random: random, found: map[string]map[string]int{}, good: first(l),
		window: map[string]time.Duration{"upgrade": 12 * time.Second, "finalize": 3 * time.Second, "rollback": 2 * time.Second, "delete": 2 * time.Second},
	}
}

// cutRounds is the life of one machine.
func cutRounds(t *testing.T, l *lab.Lab, name string, random *rand.Rand, rounds int) {
	c := newCuts(t, l, l.NewChannel(name), random)
	c.m = installed(t, l, name, c.follow, lab.Setup{})
	c.boot()
	must(t, c.sh, "echo kept > /etc/local.conf; sync")
	for n := range rounds {
		r := made(t, l, osimage.Next(n+1, 0))
		if err := c.follow.Offer(t.Context(), r); err != nil {
			t.Fatal(err)
		}
		c.upgrade(r)
		c.finalize(r)
		c.rollback(r)
		c.delete(r)
		if got := must(t, c.sh, "cat /etc/local.conf"); got != "kept\n" {
			t.Errorf("round %d: /etc/local.conf is %q", n+1, got)
		}
	}
	var table strings.Builder
	for _, op := range cutOperations {
		fmt.Fprintf(&table, "\n%-9s %v", op, c.found[op])
	}
	t.Logf("%d cuts of each, what they left:%s", rounds, table.String())
}

func getenv(name, other string) string {
	if v := os.Getenv(name); v != "" {
		return v
	}
	return other
}

func (c *cuts) boot() {
	c.t.Helper()
	c.sh = boot(c.t, c.m)
}

// cut waits for a random part of the time that the operation takes, cuts the power
// and boots.
func (c *cuts) cut(op string) lab.State {
	c.t.Helper()
	d := time.Duration(c.random.Float64() * float64(c.window[op]))
	time.Sleep(d)
	c.m.Off()
	c.t.Logf("%s: power cut after %v", op, d.Round(time.Millisecond))
	c.boot()
	s := look(c.t, c.sh)
	for _, p := range s.Status.Cfsboot.Problems {
		// The first one the next command takes care of, the second one is what delete has led to.
		if p.Code != "unfinished" && p.Code != "no-rollback" {
			c.t.Errorf("%s, after the power cut: problem %s: %s", op, p.Code, p.Message)
		}
	}
	return s
}

// unfinished tells whether the operation had begun to change something.
func unfinished(s lab.State) bool {
	return slices.ContainsFunc(s.Status.Cfsboot.Problems, func(p lab.Problem) bool { return p.Code == "unfinished" })
}

// saw counts what a cut left.
func (c *cuts) saw(op, what string) {
	if c.found[op] == nil {
		c.found[op] = map[string]int{}
	}
	c.found[op][what]++
}

// whole runs an operation without a cut and remembers how long it took, if it had
// all to do.
func (c *cuts) whole(op, command string, fresh bool) {
	c.t.Helper()
	start := time.Now()
	must(c.t, c.sh, command)
	if fresh {
		c.window[op] = (c.window[op] + time.Since(start)) / 2
	}
}

// is fails the test unless the release runs and exactly the deployments of the
// given releases are on the machine, with nothing left over.
func (c *cuts) is(op string, running osimage.Release, others ...osimage.Release) {
	c.t.Helper()
	s := look(c.t, c.sh)
	if err := s.Check(running.Version, running.Digest, alone(s)...); err != nil {
		c.t.Fatalf("%s, at its end: %v", op, err)
	}
	for _, r := range others {
		if s.Status.Of(r.Digest) == nil {
			c.t.Errorf("%s, at its end: %s is not there", op, r.Version)
		}
	}
	if n := len(s.Status.Cfsboot.Deployments); n != 1+len(others) {
		c.t.Errorf("%s, at its end: %d deployments, want %d: %+v", op, n, 1+len(others), s.Status.Cfsboot.Deployments)
	}
	tidy(c.t, c.sh, s)
}

// alone is the problem that the status has with a machine with one deployment that
// once had more.
func alone(s lab.State) []string {
	if len(s.Status.Cfsboot.Deployments) == 1 {
		return []string{"no-rollback"}
	}
	return nil
}

func (c *cuts) upgrade(r osimage.Release) {
	start(c.t, c.sh, upgrade)
	s := c.cut("upgrade")
	if s.Version != c.good.Version {
		c.t.Fatalf("after a cut during upgrade %s runs, want %s", s.Version, c.good.Version)
	}
	staged := func(s lab.State) bool {
		st := s.Status.Status.Staged
		return st != nil && st.Image.Digest == r.Digest
	}
	if staged(s) {
		c.saw("upgrade", "staged")
	} else {
		c.saw("upgrade", "not staged")
	}
	c.whole("upgrade", upgrade, !staged(s) && !unfinished(s))
	if s = look(c.t, c.sh); !staged(s) {
		c.t.Fatalf("the repeated upgrade staged %+v, want %s", s.Status.Status.Staged, r.Version)
	}
	for _, p := range s.Status.Cfsboot.Problems {
		if p.Code != "no-rollback" { // from the second round on
			c.t.Errorf("upgrade, at its end: problem %s: %s", p.Code, p.Message)
		}
	}
}

func (c *cuts) finalize(r osimage.Release) {
	finalizing(c.t, c.m, c.sh)
	if s := c.cut("finalize"); s.Version == r.Version {
		c.saw("finalize", "armed")
	} else {
		c.saw("finalize", "still staged")
		if st := s.Status.Status.Staged; st == nil || st.Image.Digest != r.Digest {
			c.t.Fatalf("after a cut during finalize staged is %+v, want %s", st, r.Version)
		}
		c.reboot()
	}
	blessed(c.t, c.sh, r)
	c.is("finalize", r, c.good)
}

func (c *cuts) rollback(r osimage.Release) {
	start(c.t, c.sh, "cfsboot rollback")
	if s := c.cut("rollback"); s.Version == c.good.Version {
		c.saw("rollback", "armed")
	} else {
		c.saw("rollback", "not armed")
		c.whole("rollback", "cfsboot rollback", !unfinished(s))
		c.reboot()
	}
	c.is("rollback", c.good, r)
}

func (c *cuts) delete(r osimage.Release) {
	d := look(c.t, c.sh).Status.Of(r.Digest)
	start(c.t, c.sh, "cfsboot delete "+d.ID)
	s := c.cut("delete")
	// Its record may be gone already while the rest is still there.
	if !slices.ContainsFunc(s.Status.Cfsboot.Deployments, func(other lab.Deployment) bool { return other.ID == d.ID }) {
		c.saw("delete", "gone")
	} else {
		c.saw("delete", "still there")
		c.whole("delete", "cfsboot delete "+d.ID, !unfinished(s))
	}
	c.is("delete", c.good)
}

func (c *cuts) reboot() {
	c.t.Helper()
	var err error
	if c.sh, err = c.m.Reboot(c.t.Context(), c.sh); err != nil {
		c.t.Fatal(err)
	}
}
