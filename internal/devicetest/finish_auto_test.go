//go:build device

package devicetest

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/ublk-clone/ublk-clone/internal/devicetest/harness"
	"github.com/ublk-clone/ublk-clone/internal/exit"
	"github.com/ublk-clone/ublk-clone/internal/runs"
)

// A clone with a layer and finish=auto is handed over without a command.

const finishAuto = "finish=auto"

// says waits until the status, as users see it, has these words.
func (b *finishBench) says(words string) {
	b.M.Helper()
	b.M.WaitFor(harness.CleanLimit, "the status to say "+words, func() error {
		if out := b.M.MustRun(harness.Command, "status", b.Name); !strings.Contains(strings.Join(strings.Fields(out), " "), words) {
			return errors.New(out)
		}
		return nil
	})
}

// TestFinishAuto: under fio, from the start on; whoever waits for the clone is told that it is
// hydrated, also when it has gone by then.
func TestFinishAuto(t *testing.T) {
	runs.On(t, "6.18", runs.Sampled)
	b := newFinishBench(t, "", "--finish", "auto")
	b.says("auto, waits for everything to be hydrated")
	wait := b.startVerify(30)
	b.HydrateFast()
	b.M.MustRun(harness.Command, "wait", b.Name, "--timeout", "60s")
	b.M.WaitFor(harness.CleanLimit, "the daemon to finish and end", func() error {
		if left := devicesAndDaemons(); len(left) > 0 {
			return errors.New(strings.Join(left, ", "))
		}
		return nil
	})
	wait()
	b.finished()
}

// TestFinishAutoLive: what keeps a clone from finishing is said, and when it is gone the clone
// finishes. It was complete before it was told to.
func TestFinishAutoLive(t *testing.T) {
	runs.On(t, "7.3", runs.Sampled)
	b := newFinishBench(t, "")
	b.hydrate()
	v := b.M.Open(b.Status().Device, os.O_RDONLY)
	b.Setting(finishAuto)
	b.says("auto, waits for a better moment: hand over")
	b.Event("finish-waits")
	b.Setting("finish=manual")
	v.Close()
	b.M.MustRun(harness.Command, "restart", b.Name)
	if s := b.Status(); s.State != "hydrated" || s.Settings["finish_auto"] != false {
		t.Errorf("by hand, it is %s: %v", s.State, s.Settings)
	}
	b.Setting(finishAuto)
	b.finished()
}

// TestFinishAutoKilled: the daemon dies within its own finish. The next one, and from step 5 on the
// command that would bring it, does the rest.
func TestFinishAutoKilled(t *testing.T) {
	runs.On(t, "7.3", runs.Sampled)
	for _, step := range []int{3, 5, 1, 2, 4, 8}[:harness.Count(2, 6)] {
		t.Run(fmt.Sprint(step), func(t *testing.T) {
			b := newFinishBench(t, fmt.Sprintf("die %d", step), "--finish", "auto")
			pid := b.Status().PID
			b.HydrateFast()
			b.WaitEnded(pid)
			if s := b.Status(); s.State != "dead" {
				t.Errorf("after the death it is %s", s.State)
			}
			b.M.MustRun(harness.Command, "recover", b.Name)
			b.finished()
		})
	}
}

// TestFinishAutoRefused: without a layer, and with a destination that is a file, nobody could be
// led to the destination.
func TestFinishAutoRefused(t *testing.T) {
	runs.On(t, "6.12")
	m := harness.New(t)
	source, dest := m.NullBlk("src", harness.NullOptions{MiB: 8}), m.NullBlk("dst", harness.NullOptions{MiB: 8})
	add := func(to *harness.Disk, args ...string) harness.Outcome {
		return m.Try(harness.Command, append([]string{"add", "test"}, harness.AddArgs(source, to, m.Missing("meta"), args...)...)...)
	}
	m.ExpectFailure(add(dest, "--finish", "auto"), exit.Usage, "--finish auto needs --dm")
	m.ExpectFailure(add(dest, "--finish", "perhaps", "--dm", harness.LayerName), exit.Usage, "auto or manual")
	c := m.AddClone(source, dest, m.Missing("meta2"))
	m.ExpectFailure(m.Try(harness.Command, "set", c.Name, finishAuto), exit.Usage, "no device-mapper device", "othing was changed")
	c.Del()
	m.Dir = m.Ext4Dir(32)
	file := m.Missing("dest")
	m.ExpectFailure(add(file, "--finish", "auto", "--dm", harness.LayerName), exit.Dest, "is a file")
	if _, err := os.Stat(file.Path); err == nil {
		t.Errorf("%s was made, and is there", file.Path)
	}
	c = m.AddClone(source, file, m.Missing("meta3"), "--dm", harness.LayerName)
	m.ExpectFailure(m.Try(harness.Command, "set", c.Name, finishAuto), exit.Dest, "is a file", "othing was changed")
	if s := c.Status(); s.Settings["finish_auto"] != false {
		t.Errorf("after a refusal: %v", s.Settings)
	}
	c.Del()
	m.LayerGone()
}
