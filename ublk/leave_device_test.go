//go:build device

package ublk

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"github.com/ublk-clone/ublk-clone/internal/runs"
)

// TestLeave: a planned restart, with clients that notice nothing, by another process and by the
// same one.
func TestLeave(t *testing.T) {
	runs.On(t, runs.EveryKernel)
	for _, queues := range []int{1, 4} {
		t.Run(fmt.Sprintf("%d queues", queues), func(t *testing.T) {
			s, c := makeServer(t, queues, 8)
			users := startClients(t, s.id, 40) // more than there are tags
			for range count(3, 30) {
				before := users.done.Load()
				waitFor(t, "operations", func() bool { return users.done.Load() > before+50 || t.Failed() })
				begin := time.Now()
				s.tell("leave")
				s.expect("left")
				left := time.Since(begin)
				must(t, s.cmd.Wait())
				s = startServer(t, c)
				s.expect("live")
				t.Logf("left in %v, live again after %v", left, time.Since(begin))
			}
			t.Logf("%d operations, the longest %v", users.done.Load(), users.end())
		})
	}
}

// TestLeaveAndComeBack: a request that the target has at work is answered first; a device left is
// not stopped, deleted or started; with QUIESCE_DEV the same process can recover it, without it the
// device stays open.
func TestLeaveAndComeBack(t *testing.T) {
	runs.On(t, runs.EveryKernel)
	ctl := openTestControl(t)
	c := serverConfig{Queues: 2, Depth: 16, Disk: filepath.Join(t.TempDir(), "disk")}
	m := newMemory(64 * mib)
	d, err := Create(ctl, c.options())
	must(t, err)
	id := d.Info().ID
	defer removeDevice(t, id)
	must(t, d.Start(m.target))
	f, b := openBlock(t, d), pattern(alignedBuffer(t, 4096), 1)
	m.mu.Lock()
	m.mu.hold = true
	m.mu.Unlock()
	result := make(chan error, 1)
	go func() { _, err := f.WriteAt(b, 0); result <- err }()
	waitFor(t, "the request to be held", func() bool {
		m.mu.Lock()
		defer m.mu.Unlock()
		return m.mu.held == 1
	})
	if err := d.Leave(300 * time.Millisecond); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("leave with a request at work: %v, want a deadline's error", err)
	}
	m.release()
	must(t, d.Leave(testLimit))
	must(t, <-result)
	if !bytes.Equal(m.disk[:4096], b) {
		t.Error("the write that was at work is not on the disk")
	}
	for what, err := range map[string]error{
		"stop": d.Stop(time.Second), "delete": d.Delete(time.Second), "start": d.Start(m.target), "leave": d.Leave(time.Second),
	} {
		if !errors.Is(err, ErrState) {
			t.Errorf("%s of a device left: %v, want ErrState", what, err)
		}
	}
	if !d.Info().Features.Quiesce {
		if info := stateOf(t, id); !info.Served() {
			t.Errorf("a device left without QUIESCE_DEV is %+v before its process has ended", info)
		}
		must(t, f.Close())
		must(t, ctl.StopDev(context.Background(), id))
		for _, q := range d.queues {
			<-q.left
		}
		must(t, d.char.Close())
		return
	}
	go func() { _, err := f.WriteAt(b, 4096); result <- err }()
	again, err := Recover(ctl, id, c.options())
	must(t, err)
	if again.Params() != d.Params() || again.Info().Queues != d.Info().Queues {
		t.Errorf("recovered %+v %+v, want %+v", again.Info(), again.Params(), d.Params())
	}
	must(t, again.Start(m.target))
	must(t, <-result)
	must(t, f.Close())
	must(t, again.Stop(testLimit))
	must(t, again.Delete(testLimit))
}

// TestHold: users of a device that is held and released again and again notice nothing, and a
// device that is held can be left with every tag at a request. A hold that its target keeps from
// ending ends itself, and says so in time.
func TestHold(t *testing.T) {
	runs.On(t, runs.EveryKernel, runs.Sampled)
	for _, queues := range []int{1, 4} {
		t.Run(fmt.Sprintf("%d queues", queues), func(t *testing.T) {
			s, c := makeServer(t, queues, 8)
			users := startClients(t, s.id, 40) // more than there are tags
			for range count(2, 10) {
				for range count(5, 50) {
					before := users.done.Load()
					s.tell("rest")
					s.expect("rested")
					waitFor(t, "operations", func() bool { return users.done.Load() > before+50 || t.Failed() })
				}
				s.tell("hold")
				s.expect("holding")
				waitFor(t, "requests to be held", func() bool { return s.held() > 0 || t.Failed() })
				s.tell("rest")
				s.expect("not rested")
				s.tell("release")
				begin := time.Now()
				s.tell("rest and leave")
				s.expect("left")
				left := time.Since(begin)
				must(t, s.cmd.Wait())
				s = startServer(t, c)
				s.expect("live")
				t.Logf("left in %v", left)
			}
			t.Logf("%d operations, the longest %v", users.done.Load(), users.end())
		})
	}
}
