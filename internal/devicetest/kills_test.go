//go:build device

package devicetest

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/ublk-clone/ublk-clone/internal/runs"
	"github.com/ublk-clone/ublk-clone/ublk"
)

// TestKills kills the daemon again and again under a mounted ext4: at random moments, right after an fsync, right
// after a recovery and in the middle of one. Meanwhile files are written, overwritten, punched, renamed and removed
// by users who log what was acknowledged, fio writes and verifies, what is free is trimmed, and the clone hydrates.
// Nobody sees an error or a wrong byte, the file system is sound, the clone becomes complete, and the destination
// alone is right (I6).
func TestKills(t *testing.T) {
	runs.On(t, "6.12", runs.OwnGuestInFull)
	m := newMachine(t)
	rng := m.random()
	const size = 96 * mib
	source := m.nullBlk("src", nullOptions{mib: size / mib, latency: 2 * time.Millisecond, depth: 4})
	dest := m.nullBlk("dst", nullOptions{mib: size / mib, discard: true})
	m.fillDisk(dest, junk)
	tree := m.newExt4(rng, source, 40*mib)
	tree.options = "discard"
	before := m.sum(source.path, size)
	c := m.addClone(source, dest, m.nullBlk("meta", nullOptions{mib: 1}), "--rate", "64KiB/s", "--min-rate", "64KiB/s",
		"--queues", m.killableQueues())
	tree.mount(c.path)
	others := tree.newOthers(rng)

	u := others.start()
	k := &killer{clone: c, rng: rng, synced: others.diary.synced, pid: c.status().PID, took: time.Second}
	k.killAll(count(5, 200))
	u.stop()
	t.Logf("%d kills, %d recoveries, %d deaths in one; hydrating after %d of %d rounds; users waited for %v at most; %d steps of fio and diary",
		k.kills, k.recoveries, k.diedInRecovery, k.hydrating, k.rounds, others.longest().Round(time.Millisecond), u.steps.Load())
	if copied := c.status().Bytes.Copied; k.hydrating < k.rounds/2 || copied == 0 {
		t.Errorf("the clone was to hydrate meanwhile, and has copied %d bytes", copied)
	}
	others.check()
	tree.check(nil)
	tree.unmount()
	tree.examine(c.path)

	c.setting("rate=none")
	c.waitHydrated()
	complete := m.sum(c.path, size)
	c.del()
	m.same("the destination alone", m.sum(dest.path, size), complete)
	m.same("the source", m.sum(source.path, size), before)
	tree.examine(dest.path)
	tree.mount(dest.path)
	others.moved(tree.root)
	others.check()
	tree.check(nil)
	tree.unmount()
}

// killableQueues is how many queues a clone may have whose daemons are killed while they take over. A kernel before
// 6.15 crashes when that comes between the FETCH of one queue and that of another (ublk.Device.Start). Drivers with
// QUIESCE_DEV, since 6.16, are newer.
func (m *machine) killableQueues() string {
	m.Helper()
	ctl, err := ublk.OpenControl()
	if err != nil {
		m.Fatal(err)
	}
	defer ctl.Close()
	features, err := ctl.Features(context.Background())
	if err != nil {
		m.Fatal(err)
	}
	if !features.Quiesce {
		return "1"
	}
	return "2"
}

// killer ends the daemons of one clone.
type killer struct {
	*clone
	rng    *rand.Rand
	synced <-chan struct{} // after an fsync of a user
	pid    int             // of the daemon
	took   time.Duration   // by the last recovery

	kills, recoveries, diedInRecovery int
	rounds, hydrating                 int // not hydrated yet after so many of the rounds
}

// killAll kills so many daemons, with the clone recovered at the end.
func (k *killer) killAll(kills int) {
	k.m.Helper()
	begin := time.Now()
	for k.kills < kills && !k.m.Failed() {
		switch k.rng.IntN(4) {
		case 0:
			select {
			case <-k.synced:
			case <-time.After(progressLimit):
				k.m.Fatalf("no fsync in %v", progressLimit)
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
			k.m.Logf("%d kills after %v", k.kills, time.Since(begin).Round(time.Second))
		}
	}
}

// killed kills a daemon and waits for its end.
func (k *killer) killed(pid int) {
	k.m.Helper()
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		k.m.Fatalf("kill the daemon: %v", err)
	}
	k.ended(pid)
}

func (k *killer) ended(pid int) {
	k.m.Helper()
	k.waitEnded(pid)
	k.kills++
}

// killRecovering kills a daemon while it takes over, or soon after.
func (k *killer) killRecovering() {
	k.m.Helper()
	r := k.startRecovery()
	time.Sleep(time.Duration(k.rng.Int64N(int64(k.took/2 + time.Millisecond))))
	if err := syscall.Kill(r.daemon, syscall.SIGKILL); err != nil {
		k.m.Fatalf("kill the daemon: %v; recover: %v: %s", err, r.cmd.Wait(), &r.stderr)
	}
	k.ended(r.daemon)
	if r.cmd.Wait() == nil {
		k.recoveries++
	} else {
		k.diedInRecovery++
	}
}

func (k *killer) recoverAgain() {
	k.m.Helper()
	begin := time.Now()
	r := k.startRecovery()
	if err := r.cmd.Wait(); err != nil {
		k.m.Fatalf("recover: %v: %s", err, &r.stderr)
	}
	k.pid, k.took = r.daemon, time.Since(begin)
	k.recoveries++
}

// pace sets cap and floor so that hydration lasts as long as the kills, and longer: some take more time than others.
func (k *killer) pace(kills int, past time.Duration) {
	k.m.Helper()
	s := k.status()
	k.rounds++
	if s.Bytes.Remaining > 0 {
		k.hydrating++
	}
	left := 3 * past * time.Duration(kills-k.kills+1) / time.Duration(k.kills)
	rate := max(4*kib, int64(float64(s.Bytes.Remaining)/(left.Seconds()+1)))
	k.setting(fmt.Sprintf("rate=%d", rate), fmt.Sprintf("min-rate=%d", rate)) // beside users there is the floor only
}

// recovery is a `recover` under way.
type recovery struct {
	cmd    *exec.Cmd
	daemon int // process that it has started
	stderr strings.Builder
}

// startRecovery returns when the daemon's process is there.
func (c *clone) startRecovery() *recovery {
	c.m.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*hydrateLimit)
	c.m.Cleanup(cancel)
	r := &recovery{cmd: exec.CommandContext(ctx, command, "recover", c.name)}
	r.cmd.Stderr = &r.stderr
	if err := r.cmd.Start(); err != nil {
		c.m.Fatal(err)
	}
	c.m.waitFor(hydrateLimit, "the daemon's process", func() error {
		for _, pid := range daemons() {
			if parent(pid) == r.cmd.Process.Pid {
				r.daemon = pid
				return nil
			}
		}
		return errors.New("there is none")
	})
	return r
}

// parent is the process that has started this one, 0 of one that is gone (the fourth field of stat).
func parent(pid int) (ppid int) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	_, rest, _ := strings.Cut(string(text), ") ")
	var state string
	fmt.Sscan(rest, &state, &ppid)
	return ppid
}
