//go:build device

package devicetest

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/ublk-clone/ublk-clone/internal/devicetest/harness"
	"github.com/ublk-clone/ublk-clone/internal/runs"
)

// The soak: clones in use, to which everything happens that a clone must stand, in random order.
// The first wrong byte, error of a user, standstill or complaint of the kernel ends it, with the
// seed and what was done.

// soakTime is SOAK, or 3 minutes in a full run, or just enough to see that it works.
func soakTime(t *testing.T) time.Duration {
	text := cmp.Or(os.Getenv("SOAK"), map[bool]string{false: "5s", true: "3m"}[os.Getenv("FULL") == "1"])
	d, err := time.ParseDuration(text)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// soakActions are what happens to a clone, and how often beside the others.
var soakActions = []struct {
	name   string
	weight int
	do     func(*soaked)
}{
	{"kill", 20, func(c *soaked) { c.kill(); c.Recover() }},
	{"kill a recovery", 8, (*soaked).killRecovery},
	{"kill over a held source", 5, (*soaked).killHeld},
	{"restart", 8, func(c *soaked) { c.M.MustRun(harness.Command, "restart", c.Name) }},
	{"hold the source", 4, (*soaked).holdSource},
	{"fail the source", 4, (*soaked).failSource},
	{"fail the metadata", 4, (*soaked).failMetadata},
	{"rate", 8, func(c *soaked) { c.Setting("rate=" + c.pick("none", "64KiB/s", "1MiB/s", "4MiB/s")) }},
	{"floor", 3, func(c *soaked) { c.Setting("min-rate=" + c.pick("none", "256KiB/s", "2MiB/s")) }},
	{"read-through", 3, func(c *soaked) { c.Setting("read-through=" + c.pick("on", "off")) }},
	{"batch", 3, func(c *soaked) { c.Message("hydration_batch_size", c.pick("1", "7", "256")) }},
	{"threshold", 3, func(c *soaked) { c.Message("hydration_threshold", c.pick("1", "64", "1024")) }},
	{"pause", 3, func(c *soaked) { c.M.MustRun(harness.Command, "pause", c.Name) }},
	{"resume", 6, func(c *soaked) { c.M.MustRun(harness.Command, "resume", c.Name) }},
	{"check", 6, func(c *soaked) { c.atRest(func() { c.user.check(c.Path) }) }},
	{"del and add", 5, func(c *soaked) { c.atRest(func() { c.Del(); c.Add() }) }},
	{"finish and begin anew", 3, func(c *soaked) { c.finish(); c.begin() }},
}

// soak is one run.
type soak struct {
	*harness.Machine
	rng     *rand.Rand
	begin   time.Time
	clones  []*soaked
	counts  map[string]int
	history []string
}

const (
	historyShown  = 200 // actions
	progressLimit = time.Minute
)

// TestSoak: see above.
func TestSoak(t *testing.T) {
	runs.On(t, "7.3", runs.Sampled)
	m := harness.New(t)
	m.Kernel.Expect("I/O error") // of the sources and metadata; users tell of their own
	s := &soak{Machine: m, rng: m.Random(), begin: time.Now(), counts: map[string]int{}}
	m.Cleanup(s.tell)
	users := []user{&rawUser{}, &fileUser{kind: harness.Ext4}, &fileUser{kind: harness.XFS}, &rawUser{}}
	for i, u := range users[:harness.Count(1, len(users))] {
		s.clones = append(s.clones, s.newClone(i, u))
	}
	minute := time.Now()
	for end := minute.Add(soakTime(t)); time.Now().Before(end) && !t.Failed(); {
		s.act()
		if time.Since(minute) > time.Minute {
			minute = time.Now()
			t.Log(s.summary())
		}
	}
	if t.Failed() {
		t.FailNow()
	}
	for _, c := range s.clones {
		s.note(c.Name, "finish")
		c.finish()
	}
	t.Log(s.summary())
}

// act does one thing to one clone, and sees that its users go on.
func (s *soak) act() {
	s.Helper()
	c := s.clones[s.rng.IntN(len(s.clones))]
	total := 0
	for _, a := range soakActions {
		total += a.weight
	}
	pick := s.rng.IntN(total)
	for _, a := range soakActions {
		if pick -= a.weight; pick < 0 {
			s.note(c.Name, a.name)
			a.do(c)
			break
		}
	}
	before := c.user.answered()
	s.WaitFor(progressLimit, "the users of "+c.Name+" to go on", func() error {
		if c.user.answered() == before && !s.Failed() {
			return fmt.Errorf("they have made %d requests", before)
		}
		return nil
	})
	s.Kernel.Check(s.T)
}

// note keeps what is done next.
func (s *soak) note(name, action string) {
	s.counts[action]++
	s.history = append(s.history, fmt.Sprintf("%8v  %s: %s", time.Since(s.begin).Round(time.Millisecond), name, action))
	s.history = s.history[max(0, len(s.history)-historyShown):]
}

// tell prints the history of a run that has failed.
func (s *soak) tell() {
	if s.Failed() {
		s.Logf("seed %d; what was done, the last last:\n%s", harness.Seed(), strings.Join(s.history, "\n"))
	}
}

// summary is what was done so far.
func (s *soak) summary() string {
	var parts []string
	for _, a := range soakActions {
		parts = append(parts, fmt.Sprintf("%s %d", a.name, s.counts[a.name]))
	}
	var requests int64
	var slowest time.Duration
	for _, c := range s.clones {
		requests += c.user.answered()
		slowest = max(slowest, c.user.longest())
	}
	return fmt.Sprintf("%v: %s; %d requests, the longest %v", time.Since(s.begin).Round(time.Second), strings.Join(parts, ", "),
		requests, slowest.Round(time.Millisecond))
}
