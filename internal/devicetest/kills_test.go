//go:build device

package devicetest

import (
	"fmt"
	"math/rand/v2"
	"syscall"
	"testing"
	"time"

	"github.com/ublk-clone/ublk-clone/internal/devicetest/harness"
	"github.com/ublk-clone/ublk-clone/internal/runs"
)

// TestKills kills the daemon again and again under a mounted ext4: at random moments, right after
// an fsync, right after a recovery and in the middle of one. Meanwhile files are written,
// overwritten, punched, renamed and removed by users who log what was acknowledged, fio writes and
// verifies, what is free is trimmed, and the clone hydrates. Nobody sees an error or a wrong byte,
// the file system is sound, the clone becomes complete, and the destination alone is right (I6).
func TestKills(t *testing.T) {
	runs.On(t, "6.12", runs.Layered, runs.OwnGuestInFull, runs.Sampled)
	m := harness.New(t)
	rng := m.Random()
	const size = 96 * harness.MiB
	source := m.NullBlk("src", harness.NullOptions{MiB: size / harness.MiB, Latency: 2 * time.Millisecond, Depth: 4})
	dest := m.NullBlk("dst", harness.NullOptions{MiB: size / harness.MiB, Discard: true})
	m.FillDisk(dest, harness.Junk)
	tree := m.NewExt4(rng, source, 40*harness.MiB)
	tree.Options = "discard"
	before := m.Sum(source.Path, size)
	c := m.AddClone(source, dest, m.NullBlk("meta", harness.NullOptions{MiB: 1}), "--rate", "64KiB/s", "--min-rate", "64KiB/s",
		"--queues", m.KillableQueues())
	tree.Mount(c.Path)
	others := tree.NewOthers(rng)

	u := others.Start()
	k := &killer{Clone: c, rng: rng, synced: others.Diary.Synced, pid: c.Status().PID, took: time.Second}
	k.killAll(harness.Count(5, 200))
	u.Stop()
	t.Logf("%d kills, %d recoveries, %d deaths in one; hydrating after %d of %d rounds; users waited for %v at most; %d steps of fio and diary",
		k.kills, k.recoveries, k.diedInRecovery, k.hydrating, k.rounds, others.Longest().Round(time.Millisecond), u.Steps.Load())
	if copied := c.Status().Bytes.Copied; k.hydrating < k.rounds/2 || copied == 0 {
		t.Errorf("the clone was to hydrate meanwhile, and has copied %d bytes", copied)
	}
	others.Check()
	tree.Check(nil)
	tree.Unmount()
	tree.Fsck(c.Path)

	c.Setting("rate=none")
	c.WaitHydrated()
	complete := m.Sum(c.Path, size)
	c.Del()
	m.Same("the destination alone", m.Sum(dest.Path, size), complete)
	m.Same("the source", m.Sum(source.Path, size), before)
	tree.Fsck(dest.Path)
	tree.Mount(dest.Path)
	others.Moved(tree.Root)
	others.Check()
	tree.Check(nil)
	tree.Unmount()
}

// killer ends the daemons of one clone.
type killer struct {
	*harness.Clone
	rng    *rand.Rand
	synced <-chan struct{} // after an fsync of a user
	pid    int             // of the daemon
	took   time.Duration   // by the last recovery

	kills, recoveries, diedInRecovery int
	rounds, hydrating                 int // not hydrated yet after so many of the rounds
}

// killAll kills so many daemons, with the clone recovered at the end.
func (k *killer) killAll(kills int) {
	k.M.Helper()
	begin := time.Now()
	for k.kills < kills && !k.M.Failed() {
		switch k.rng.IntN(4) {
		case 0:
			select {
			case <-k.synced:
			case <-time.After(progressLimit):
				k.M.Fatalf("no fsync in %v", progressLimit)
			}
		case 1: // at once
		default:
			time.Sleep(time.Duration(k.rng.Int64N(int64(time.Second)))) // anything may be in flight
		}
		k.killed(k.pid)
		for n := k.rng.IntN(3); n > 0 && k.kills < kills; n-- {
			k.killRecovering()
		}
		k.recoverAgain()
		k.pace(kills, time.Since(begin))
		if k.rounds%20 == 0 {
			k.M.Logf("%d kills after %v", k.kills, time.Since(begin).Round(time.Second))
		}
	}
}

// killed kills a daemon and waits for its end.
func (k *killer) killed(pid int) {
	k.M.Helper()
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		k.M.Fatalf("kill the daemon: %v", err)
	}
	k.ended(pid)
}

func (k *killer) ended(pid int) {
	k.M.Helper()
	k.WaitEnded(pid)
	k.kills++
}

// killRecovering kills a daemon while it takes over, or soon after.
func (k *killer) killRecovering() {
	k.M.Helper()
	r := k.StartRecovery()
	time.Sleep(time.Duration(k.rng.Int64N(int64(k.took/2 + time.Millisecond))))
	if err := syscall.Kill(r.Daemon, syscall.SIGKILL); err != nil {
		k.M.Fatalf("kill the daemon: %v; recover: %v: %s", err, r.Cmd.Wait(), &r.Stderr)
	}
	k.ended(r.Daemon)
	if r.Cmd.Wait() == nil {
		k.recoveries++
	} else {
		k.diedInRecovery++
	}
}

func (k *killer) recoverAgain() {
	k.M.Helper()
	begin := time.Now()
	r := k.StartRecovery()
	if err := r.Cmd.Wait(); err != nil {
		k.M.Fatalf("recover: %v: %s", err, &r.Stderr)
	}
	k.pid, k.took = r.Daemon, time.Since(begin)
	k.recoveries++
}

// pace sets cap and floor so that hydration lasts as long as the kills, and longer: some take more
// time than others.
func (k *killer) pace(kills int, past time.Duration) {
	k.M.Helper()
	s := k.Status()
	k.rounds++
	if s.Bytes.Remaining > 0 {
		k.hydrating++
	}
	left := 3 * past * time.Duration(kills-k.kills+1) / time.Duration(k.kills)
	rate := max(4*harness.KiB, int64(float64(s.Bytes.Remaining)/(left.Seconds()+1)))
	k.Setting(fmt.Sprintf("rate=%d", rate), fmt.Sprintf("min-rate=%d", rate)) // beside users there is the floor only
}
