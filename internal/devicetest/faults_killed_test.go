//go:build device

package devicetest

import (
	"syscall"
	"testing"

	"github.com/ublk-clone/ublk-clone/internal/devicetest/harness"
	"github.com/ublk-clone/ublk-clone/internal/runs"
)

// Faults A to F with the death of the daemon in the middle of each: the next one knows no less, and
// repeats no more, than the one that died.

// disturbance is what happens to the daemon in the middle of a test. release ends what the test holds up
// meanwhile.
type disturbance func(c *harness.Clone, release func())

// undisturbed: nothing happens to it.
func undisturbed(_ *harness.Clone, release func()) { release() }

// killed: it dies, and the next one takes over when what was in flight has ended.
func killed(c *harness.Clone, release func()) {
	c.M.Helper()
	c.End(syscall.SIGKILL)
	release()
	c.Recover()
}

// A: the copies in flight belong to a dead daemon; the write that was flushed is not lost to them,
// and those that were waiting are made.
func TestFaultAKilled(t *testing.T) {
	runs.On(t, "6.12", runs.Layered, runs.Sampled)
	testWriteUnderCopy(t, killed, true)
}

// B: what was discarded and not committed is zeros to the next daemon too.
func TestFaultBKilled(t *testing.T) {
	runs.On(t, "7.3", runs.Layered, runs.Sampled)
	testOldContent(t, killed, true)
}

// C: the readers go on with the next daemon, and so does the floor beside them.
func TestFaultCKilled(t *testing.T) {
	runs.On(t, "6.12", runs.CountingClock, runs.Sampled)
	testMinRate(t, killed)
}

// D: the next daemon shows what was acknowledged, and stays read-only though the metadata work
// again (I10).
func TestFaultDKilled(t *testing.T) {
	runs.On(t, "6.18", runs.Layered, runs.Sampled)
	testFailedCommit(t, killed)
}

// E: the writes beside the bad region are made by the next daemon.
func TestFaultEKilled(t *testing.T) {
	runs.On(t, "6.18", runs.Layered)
	testBadRegionInBatch(t, killed)
}

// F: the next daemon tries a few times anew, and is as quiet then.
func TestFaultFKilled(t *testing.T) {
	runs.On(t, "7.3", runs.Layered, runs.Sampled)
	testEndlessRetry(t, killed)
}
