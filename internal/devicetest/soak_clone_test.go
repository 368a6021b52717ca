//go:build device

package devicetest

import (
	"fmt"
	"os"
	"slices"
	"syscall"
	"time"

	"github.com/ublk-clone/ublk-clone/internal/exit"
)

// soaked is a clone with its devices and its user.
type soaked struct {
	*clone
	s      *soak
	user   user
	source *faultyDisk
	sum    []uint64 // of the source
	dest   *disk
	meta   *disk
	under  *disk  // the metadata
	mapper string // their name in device-mapper
}

const (
	soakBytes = 48 * mib // of a clone
	soakMeta  = mib
)

// newClone makes one and lets its user begin.
func (s *soak) newClone(i int, u user) *soaked {
	s.Helper()
	role := func(what string) string { return fmt.Sprint(what, i) }
	c := &soaked{s: s, user: u, source: s.faultyDisk(role("src"), soakBytes/mib), mapper: role("meta"),
		dest: s.nullBlk(role("dst"), nullOptions{mib: soakBytes / mib, discard: i%2 == 0}), under: s.nullBlk(role("meta"), nullOptions{mib: soakMeta / mib})}
	c.meta = s.linear(c.mapper, c.under, soakMeta)
	c.clone = s.machine.newClone(c.source.disk, c.dest, c.meta)
	c.name = role("soak")
	c.begin()
	return c
}

// begin makes a clone of new content.
func (c *soaked) begin() {
	c.m.Helper()
	region := []int64{4 * kib, 4 * kib, 16 * kib, 256 * kib}[c.s.rng.IntN(4)]
	c.user.prepare(c.s, c.source.disk, region)
	c.sum = c.m.sum(c.source.path, c.source.size)
	c.m.fillDisk(c.dest, junk)
	c.m.fillDisk(c.meta, zeros)
	c.args = addArgs(c.source.disk, c.dest, c.meta, "--region-size", kibText(region), "--queues", c.m.killableQueues(), "--rate", "256KiB/s")
	c.add()
	c.user.start(c.path)
}

// finish hydrates the clone and compares, and then the destination alone.
func (c *soaked) finish() {
	c.m.Helper()
	c.setting("rate=none", "min-rate=8MiB/s") // with the users there
	c.hydrateFast()
	c.waitHydrated()
	c.user.stop()
	c.user.check(c.path)
	c.del()
	c.user.check(c.dest.path)
	c.m.same("the source of "+c.name, c.m.sum(c.source.path, c.source.size), c.sum)
}

// atRest does something while nobody uses the clone.
func (c *soaked) atRest(do func()) {
	c.m.Helper()
	c.user.stop()
	do()
	c.user.start(c.path)
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
	c.m.Helper()
	c.end(syscall.SIGKILL)
}

func (c *soaked) killRecovery() {
	c.m.Helper()
	c.kill()
	r := c.startRecovery()
	c.some(2 * time.Second)
	if err := syscall.Kill(r.daemon, syscall.SIGKILL); err != nil {
		c.m.Fatal(err)
	}
	c.waitEnded(r.daemon)
	_ = r.cmd.Wait() // it was through, or not
	c.recover()
}

// killHeld: requests to the source are in flight when the daemon dies, and end afterwards.
func (c *soaked) killHeld() {
	c.m.Helper()
	c.source.hold()
	c.some(time.Second)
	c.kill()
	c.source.release()
	c.recover()
}

// holdSource: everybody waits, and goes on.
func (c *soaked) holdSource() {
	c.m.Helper()
	c.source.hold()
	c.some(3 * time.Second)
	c.source.release()
}

// failSource: hydration meets a bad range. Nobody else does: whoever did would get an error.
func (c *soaked) failSource() {
	c.m.Helper()
	c.atRest(func() {
		first := (4 + c.s.rng.Int64N(40)) * mib
		c.source.fail(first, first+mib)
		c.setting("rate=none")
		c.some(3 * time.Second)
		c.source.mend()
		c.m.run(command, "resume", c.name)
		c.setting("rate=256KiB/s")
	})
}

// failMetadata: what was acknowledged stays, over a kill too, and the repaired metadata get it (I10).
func (c *soaked) failMetadata() {
	c.m.Helper()
	c.atRest(func() {
		c.m.fails(c.mapper, soakMeta)
		c.some(3 * time.Second)
		c.m.works(c.mapper, soakMeta, c.under)
		v := c.m.open(c.path, os.O_RDWR)
		failed := v.flush() != nil
		v.close()
		if c.s.rng.IntN(2) == 0 {
			c.kill()
			c.recover()
		}
		if mode := c.status().Mode; failed != (mode == "ro") {
			c.m.Fatalf("a FLUSH has failed: %v, and the mode is %s", failed, mode)
		}
		if !failed { // there was nothing to commit
			return
		}
		c.m.expectFailure(c.m.try(command, "del", c.name), exit.OK, "no clean mark")
		plain := c.args
		c.args = append(slices.Clone(plain), "--force") // which ends the mode, and nothing is lost
		c.add()
		c.args = plain
		c.user.check(c.path)
	})
}
