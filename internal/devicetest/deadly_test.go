//go:build device

package devicetest

import (
	"os"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/ublk-clone/ublk-clone/internal/devicetest/harness"
	"github.com/ublk-clone/ublk-clone/internal/runs"
)

// deadlyEnv makes the faulty program kill itself when a request touches that byte of the device.
const deadlyEnv = "UBLK_CLONE_DEADLY"

// mostDeaths is the bound on how many daemons a request may kill, and a few that other causes may.
const mostDeaths = 12

// TestDeadlyRequest: a request that kills every daemon which takes it is answered with an error
// after a few of them; all others are answered well, and the device lives (I11).
func TestDeadlyRequest(t *testing.T) {
	runs.On(t, "6.12", runs.Sampled)
	m := harness.New(t)
	m.Kernel.Expect("I/O error")
	rng := m.Random()
	const size, bad = 16 * harness.MiB, 9 * harness.MiB
	source, dest := m.NullBlk("src", harness.NullOptions{MiB: size / harness.MiB}), m.NullBlk("dst", harness.NullOptions{MiB: size / harness.MiB})
	m.FillDisk(source, harness.Original)
	m.FillDisk(dest, harness.Junk)
	c := m.NewClone(source, dest, m.Missing("meta"), "--read-through=off", "--no-hydration", "--queues", "2")
	t.Setenv(deadlyEnv, strconv.FormatInt(bad+512, 10))
	m.Must(m.Try(faulty, append([]string{"add", c.Name}, c.Args...)...), faulty, "add")
	c.Path = c.Status().Device

	// Users of the first half; and one request that kills.
	w := harness.NewModel(bad, 4*harness.KiB)
	stop := make(chan struct{})
	wait := w.Start(m, rng, c.Path, harness.Load{Threads: 4, Block: 512, Kinds: harness.Everything}, stop)
	v, buf := m.Open(c.Path, os.O_RDWR), m.Buffer(8*int(harness.KiB))
	answer := make(chan error, 1)
	go func() { answer <- v.Write(buf, bad) }()

	deaths := 0
	for err := error(nil); err == nil; {
		select {
		case err = <-answer:
			if err == nil {
				t.Fatal("the request that kills is answered well")
			}
			t.Logf("after %d deaths: %v", deaths, err)
		default:
			if len(harness.Daemons()) > 0 {
				time.Sleep(harness.WaitInterval)
				continue
			}
			if deaths++; deaths > mostDeaths {
				t.Fatal("it kills and kills")
			}
			m.Try(faulty, "recover", c.Name) // which may die before it can say so
		}
	}
	close(stop)
	wait()
	w.Check(m, c.Path)
	if err := v.Read(buf, bad+harness.MiB); err != nil {
		t.Errorf("a read beside it: %v", err)
	}
	v.Close()
	if s := c.Status(); s.Mode != "rw" {
		t.Errorf("mode %s", s.Mode)
	}
	_ = os.Unsetenv(deadlyEnv)
	c.End(syscall.SIGTERM) // with a program that is sound the request is served
	c.Recover()
	v = m.Open(c.Path, os.O_RDWR)
	if err := v.Write(buf, bad); err != nil {
		t.Errorf("with a sound program: %v", err)
	}
	v.Close()
	c.Del()
}
