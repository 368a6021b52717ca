//go:build device

package ublk

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ublk-clone/ublk-clone/internal/runs"
)

// count is full with FULL=1, else reduced.
func count(reduced, full int) int {
	if os.Getenv("FULL") == "1" {
		return full
	}
	return reduced
}

// TestRecoverReissues: what the dead server had and did not answer is given to the new one, and the
// users see no error. The device keeps its number of queues and its depth, whatever the new server
// would have asked for.
func TestRecoverReissues(t *testing.T) {
	runs.On(t, runs.EveryKernel)
	for _, queues := range []int{1, 2, 4} {
		t.Run(fmt.Sprintf("%d queues", queues), func(t *testing.T) {
			s, c := makeServer(t, queues, 16)
			const writers = 8
			users := startClients(t, s.id, writers)
			s.tell("hold")
			s.expect("holding")
			waitFor(t, "requests in flight", func() bool { return inFlight(t, s.id) == writers })
			s.kill()
			c.Queues, c.Depth, c.Hold = 1, 3, true
			begin := time.Now()
			next := startServer(t, c)
			next.expect("live")
			t.Logf("recovered after %v", time.Since(begin))
			got := 0
			waitFor(t, "what was in flight to come again", func() bool {
				next.tell("count")
				var more int
				_, err := fmt.Sscanf(next.line(), "count %d", &more)
				must(t, err)
				got += more
				return got >= writers
			})
			next.tell("release")
			t.Logf("longest operation %v", users.end())
			info := stateOf(t, s.id)
			if info.Queues != min(queues, runtime.NumCPU()) || info.Depth != 16 || !info.Served() || info.ServerPID != next.cmd.Process.Pid {
				t.Errorf("the device is now %+v", info)
			}
		})
	}
}

// TestRecoverManyTimes kills server after server at random moments.
func TestRecoverManyTimes(t *testing.T) {
	runs.On(t, runs.EveryKernel, runs.Sampled)
	for _, queues := range []int{1, 2, 4} {
		t.Run(fmt.Sprintf("%d queues", queues), func(t *testing.T) {
			random := rand.New(rand.NewPCG(uint64(queues), 3))
			s, c := makeServer(t, queues, 32)
			users := startClients(t, s.id, 8)
			for range count(5, 50) {
				before := users.done.Load()
				some := int64(random.IntN(60))
				waitFor(t, "operations", func() bool { return users.done.Load() > before+some || t.Failed() })
				s.kill()
				s = startServer(t, c)
				s.expect("live")
			}
			t.Logf("%d operations, the longest %v", users.done.Load(), users.end())
		})
	}
}

// TestRecoverSaturated kills a server that had all tags at work. With 4 there is none to spare on
// 6.12.
func TestRecoverSaturated(t *testing.T) {
	runs.On(t, runs.EveryKernel)
	for _, depth := range []int{4, 16} {
		t.Run(fmt.Sprintf("depth %d", depth), func(t *testing.T) {
			s, c := makeServer(t, 2, depth)
			users := startClients(t, s.id, 40)
			s.tell("hold")
			s.expect("holding")
			info := stateOf(t, s.id)
			tags := info.Queues * depth
			if depth > 4 && !info.Features.Quiesce {
				tags -= info.Queues // those to spare
			}
			waitFor(t, "all tags to be at work", func() bool { return inFlight(t, s.id) == tags })
			s.kill()
			begin := time.Now()
			s = startServer(t, c)
			s.expect("live")
			took := time.Since(begin)
			t.Logf("recovered after %v, the longest operation %v", took, users.end())
			if took > 10*time.Second {
				t.Errorf("recovery took %v", took)
			}
		})
	}
}

// TestRecoveryDies: a recovery that is killed at any step leaves a device that the next one
// recovers.
func TestRecoveryDies(t *testing.T) {
	runs.On(t, runs.EveryKernel, runs.Sampled)
	for _, queues := range []int{1, 2} {
		for _, step := range []string{"queue 0", "recover", "open", "fetch", "start"} {
			t.Run(fmt.Sprintf("%d queues, before step %s", queues, step), func(t *testing.T) {
				s, c := makeServer(t, queues, 16)
				users := startClients(t, s.id, 8)
				s.tell("hold")
				s.expect("holding")
				waitFor(t, "requests in flight", func() bool { return inFlight(t, s.id) == 8 })
				s.kill()
				for range count(2, 10) {
					dying := c
					dying.DieAt = step
					startServer(t, dying).killed()
				}
				s = startServer(t, c)
				s.expect("live")
				t.Logf("longest operation %v", users.end())
			})
		}
	}
}

// TestRecoveryFails: a recovery that fails at any step, or whose target cannot be set up, leaves
// the device as it was.
func TestRecoveryFails(t *testing.T) {
	runs.On(t, runs.EveryKernel)
	ctl := openTestControl(t)
	for _, step := range []string{"queue 0", "queue 1", "recover", "open", "fetch", "start", "no target"} {
		t.Run(step, func(t *testing.T) {
			s, c := makeServer(t, 2, 16)
			users := startClients(t, s.id, 4)
			s.tell("hold")
			s.expect("holding")
			waitFor(t, "requests in flight", func() bool { return inFlight(t, s.id) == 4 })
			s.kill()
			m, err := mapDisk(c.Disk)
			must(t, err)
			before := resourcesNow(t)
			for range count(2, 10) {
				o := c.options()
				wanted := errors.New("wanted")
				o.fail = func(s string) error {
					if s == step {
						return wanted
					}
					return nil
				}
				d, err := Recover(ctl, s.id, o)
				must(t, err)
				failing := c
				failing.NoTarget = step == "no target"
				err = d.Start(failing.target(m, 2))
				if !errors.Is(err, wanted) && !failing.NoTarget || err == nil {
					t.Fatalf("start: %v", err)
				}
				if err := d.Start(c.target(m, 2)); !errors.Is(err, ErrState) {
					t.Errorf("a second start: %v, want ErrState", err)
				}
				if err := d.Stop(time.Second); !errors.Is(err, ErrState) {
					t.Errorf("stop: %v, want ErrState", err)
				}
				waitFor(t, "the device to be quiesced", func() bool { return stateOf(t, s.id).State == StateQuiesced })
			}
			leftBehind(t, before)
			s = startServer(t, c)
			s.expect("live")
			t.Logf("longest operation %v", users.end())
		})
	}
}

// TestRecoverRefuses: what is not ours to recover is not touched.
func TestRecoverRefuses(t *testing.T) {
	runs.On(t, runs.EveryKernel)
	ctl := openTestControl(t)
	s, c := makeServer(t, 1, 16)
	o := c.options()
	begin := time.Now()
	if _, err := Recover(ctl, s.id, o); !errors.Is(err, ErrServed) {
		t.Errorf("a device with a living server: %v, want ErrServed", err)
	}
	if took := time.Since(begin); took > 20*graceTime {
		t.Errorf("it took %v to say so", took)
	}
	users := startClients(t, s.id, 4)
	users.end()
	s.kill()
	waitFor(t, "the device to be quiesced", func() bool { return stateOf(t, s.id).State == StateQuiesced })
	before := stateOf(t, s.id)
	o.Private++
	if _, err := Recover(ctl, s.id, o); !errors.Is(err, ErrForeign) {
		t.Errorf("a device with another cookie: %v, want ErrForeign", err)
	}
	if now := stateOf(t, s.id); now != before {
		t.Errorf("a device that was refused is now %+v, was %+v", now, before)
	}
	startServer(t, c).expect("live")
	if _, err := Recover(ctl, 4711, o); !errors.Is(err, unix.ENODEV) {
		t.Errorf("a device that does not exist: %v, want ENODEV", err)
	}
	for _, recoverable := range []bool{false, true} {
		o := testOptions(1)
		o.Recoverable = recoverable
		d, err := Create(ctl, o)
		must(t, err)
		if _, err := Recover(ctl, d.Info().ID, o); !errors.Is(err, ErrUnrecoverable) {
			t.Errorf("a device that was not started, recoverable %v: %v, want ErrUnrecoverable", recoverable, err)
		}
		must(t, d.Delete(testLimit))
	}
}

// TestRecoverWaits: as long as ublkcN is open Recover or Start waits, and says for what when its
// time is up.
func TestRecoverWaits(t *testing.T) {
	runs.On(t, runs.EveryKernel, runs.Sampled)
	ctl := openTestControl(t)
	s, c := makeServer(t, 1, 16)
	s.kill()
	waitFor(t, "the device to be quiesced", func() bool { return stateOf(t, s.id).State == StateQuiesced })
	var char *os.File
	waitFor(t, "ublkcN to be closed", func() (opened bool) {
		var err error
		char, err = os.OpenFile(CharPath(s.id), os.O_RDWR, 0)
		return err == nil
	})
	defer char.Close()
	m, err := mapDisk(c.Disk)
	must(t, err)
	o := c.options()
	o.RecoverTime = 300 * time.Millisecond
	d, err := Recover(ctl, s.id, o)
	must(t, err)
	var timeout *TimeoutError
	if err := d.Start(c.target(m, 1)); !errors.As(err, &timeout) || timeout.Command != "START_USER_RECOVERY" || timeout.Waited == "" {
		t.Errorf("with ublkcN open: %v, want a TimeoutError", err)
	}
	go func() {
		time.Sleep(200 * time.Millisecond)
		char.Close()
	}()
	startServer(t, c).expect("live")
}

// TestDeleteDead: the users of a dead device that is removed get errors and do not wait for ever.
func TestDeleteDead(t *testing.T) {
	runs.On(t, runs.EveryKernel)
	s, _ := makeServer(t, 2, 16)
	f, err := os.OpenFile(BlockPath(s.id), os.O_RDWR|unix.O_DIRECT, 0)
	must(t, err)
	defer f.Close()
	s.tell("hold")
	s.expect("holding")
	b := alignedBuffer(t, 4096)
	result := make(chan error, 1)
	go func() { _, err := f.WriteAt(b, 0); result <- err }()
	waitFor(t, "the request", func() bool { return inFlight(t, s.id) == 1 })
	s.kill()
	ctl := openTestControl(t)
	must(t, ctl.StopDev(context.Background(), s.id))
	if err := <-result; err == nil {
		t.Error("a write to a device that was removed succeeded")
	}
	if state := stateOf(t, s.id).State; state != StateDead {
		t.Errorf("the device is %v", state)
	}
	f.Close()
	must(t, ctl.DelDev(context.Background(), s.id))
}

func TestListDevices(t *testing.T) {
	runs.On(t, runs.EveryKernel)
	ctl := openTestControl(t)
	foreign := startDevice(t, testOptions(1), newMemory(64*mib).target)
	s, _ := makeServer(t, 1, 16)
	s.kill()
	waitFor(t, "the device to be quiesced", func() bool { return stateOf(t, s.id).State == StateQuiesced })
	all, err := ctl.ListDevices(context.Background())
	must(t, err)
	find := func(id int) Info {
		i := slices.IndexFunc(all, func(i Info) bool { return i.ID == id })
		if i < 0 {
			t.Fatalf("device %d is not among %+v", id, all)
		}
		return all[i]
	}
	if i := find(foreign.Info().ID); i.Private == serverCookie || !i.Served() || i.ServerPID != os.Getpid() || i.Features.UserRecovery {
		t.Errorf("a device of this process: %+v", i)
	}
	if i := find(s.id); i.Private != serverCookie || i.Served() || i.State != StateQuiesced || !i.Features.UserRecoveryReissue {
		t.Errorf("a device without server: %+v", i)
	}
}
