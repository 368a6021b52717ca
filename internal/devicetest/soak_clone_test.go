//go:build device

package devicetest

import (
	"fmt"
	"os"
	"slices"
	"syscall"
	"time"

	"github.com/ublk-clone/ublk-clone/internal/devicetest/harness"
	"github.com/ublk-clone/ublk-clone/internal/exit"
)

// soaked is a clone with its devices and its user.
type soaked struct {
	*harness.Clone
	s      *soak
	user   user
	source *harness.FaultyDisk
	sum    []uint64 // of the source
	dest   *harness.Disk
	meta   *harness.Disk
	under  *harness.Disk // the metadata
	mapper string        // their name in device-mapper
}

const (
	soakBytes = 48 * harness.MiB // of a clone
	soakMeta  = harness.MiB
)

// newClone makes one and lets its user begin.
func (s *soak) newClone(i int, u user) *soaked {
	s.Helper()
	role := func(what string) string { return fmt.Sprint(what, i) }
	c := &soaked{s: s, user: u, source: s.FaultyDisk(role("src"), soakBytes/harness.MiB), mapper: role("meta"),
		dest: s.NullBlk(role("dst"), harness.NullOptions{MiB: soakBytes / harness.MiB, Discard: i%2 == 0}), under: s.NullBlk(role("meta"), harness.NullOptions{MiB: soakMeta / harness.MiB})}
	c.meta = s.Linear(c.mapper, c.under, soakMeta)
	c.Clone = s.Machine.NewClone(c.source.Disk, c.dest, c.meta)
	c.Name = role("soak")
	c.begin()
	return c
}

// begin makes a clone of new content.
func (c *soaked) begin() {
	c.M.Helper()
	region := []int64{4 * harness.KiB, 4 * harness.KiB, 16 * harness.KiB, 256 * harness.KiB}[c.s.rng.IntN(4)]
	c.user.prepare(c.s, c.source.Disk, region)
	c.sum = c.M.Sum(c.source.Path, c.source.Size)
	c.M.FillDisk(c.dest, harness.Junk)
	c.M.FillDisk(c.meta, harness.Zeros)
	c.Args = harness.AddArgs(c.source.Disk, c.dest, c.meta, "--region-size", harness.KiBText(region), "--queues", c.M.KillableQueues(), "--rate", "256KiB/s")
	c.Add()
	c.user.start(c.Path)
}

// finish hydrates the clone and compares, and then the destination alone.
func (c *soaked) finish() {
	c.M.Helper()
	c.Setting("rate=none", "min-rate=8MiB/s") // with the users there
	c.HydrateFast()
	c.WaitHydrated()
	c.user.Stop()
	c.user.check(c.Path)
	c.Del()
	c.user.check(c.dest.Path)
	c.M.Same("the source of "+c.Name, c.M.Sum(c.source.Path, c.source.Size), c.sum)
}

// atRest does something while nobody uses the clone.
func (c *soaked) atRest(do func()) {
	c.M.Helper()
	c.user.Stop()
	do()
	c.user.start(c.Path)
}

// pick is one of the words, which goes into the history.
func (c *soaked) pick(words ...string) string {
	word := words[c.s.rng.IntN(len(words))]
	c.s.history[len(c.s.history)-1] += " " + word
	return word
}

// some is a random time up to limit: anything may be in flight when it is over.
func (c *soaked) some(limit time.Duration) { time.Sleep(time.Duration(c.s.rng.Int64N(int64(limit)))) }

func (c *soaked) kill() {
	c.M.Helper()
	c.End(syscall.SIGKILL)
}

func (c *soaked) killRecovery() {
	c.M.Helper()
	c.kill()
	r := c.StartRecovery()
	c.some(2 * time.Second)
	if err := syscall.Kill(r.Daemon, syscall.SIGKILL); err != nil {
		c.M.Fatal(err)
	}
	c.WaitEnded(r.Daemon)
	_ = r.Cmd.Wait() // it was through, or not
	c.Recover()
}

// killHeld: requests to the source are in flight when the daemon dies, and end afterwards.
func (c *soaked) killHeld() {
	c.M.Helper()
	c.source.Hold()
	c.some(time.Second)
	c.kill()
	c.source.Release()
	c.Recover()
}

// holdSource: everybody waits, and goes on.
func (c *soaked) holdSource() {
	c.M.Helper()
	c.source.Hold()
	c.some(3 * time.Second)
	c.source.Release()
}

// failSource: hydration meets a bad range. Nobody else does: whoever did would get an error.
func (c *soaked) failSource() {
	c.M.Helper()
	c.atRest(func() {
		first := (4 + c.s.rng.Int64N(40)) * harness.MiB
		c.source.Fail(first, first+harness.MiB)
		c.Setting("rate=none")
		c.some(3 * time.Second)
		c.source.Mend()
		c.M.MustRun(harness.Command, "resume", c.Name)
		c.Setting("rate=256KiB/s")
	})
}

// failMetadata: what was acknowledged stays, over a kill too, and the repaired metadata get it
// (I10).
func (c *soaked) failMetadata() {
	c.M.Helper()
	c.atRest(func() {
		c.M.Fails(c.mapper, soakMeta)
		c.some(3 * time.Second)
		c.M.Works(c.mapper, soakMeta, c.under)
		v := c.M.Open(c.Path, os.O_RDWR)
		failed := v.Flush() != nil
		v.Close()
		if c.s.rng.IntN(2) == 0 {
			c.kill()
			c.Recover()
		}
		if mode := c.Status().Mode; failed != (mode == "ro") {
			c.M.Fatalf("a FLUSH has failed: %v, and the mode is %s", failed, mode)
		}
		if !failed { // there was nothing to commit
			return
		}
		c.M.ExpectFailure(c.M.Try(harness.Command, "del", c.Name), exit.OK, "no clean flag")
		plain := c.Args
		c.Args = append(slices.Clone(plain), "--force") // which ends the mode, and nothing is lost
		c.Add()
		c.Args = plain
		c.user.check(c.Path)
	})
}
