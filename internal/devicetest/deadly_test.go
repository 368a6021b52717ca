//go:build device

package devicetest

import (
	"os"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/ublk-clone/ublk-clone/internal/runs"
)

// deadlyEnv makes the faulty program kill itself when a request touches that byte of the device.
const deadlyEnv = "UBLK_CLONE_DEADLY"

// mostDeaths is the bound on how many daemons a request may kill, and a few that other causes may.
const mostDeaths = 12

// TestDeadlyRequest: a request that kills every daemon which takes it is answered with an error after a few of them;
// all others are answered well, and the device lives (I11).
func TestDeadlyRequest(t *testing.T) {
	runs.On(t, "6.12")
	m := newMachine(t)
	m.kernel.expect("I/O error")
	rng := m.random()
	const size, bad = 16 * mib, 9 * mib
	source, dest := m.nullBlk("src", nullOptions{mib: size / mib}), m.nullBlk("dst", nullOptions{mib: size / mib})
	m.fillDisk(source, original)
	m.fillDisk(dest, junk)
	c := m.newClone(source, dest, m.missing("meta"), "--read-through=off", "--no-hydration", "--queues", "2")
	t.Setenv(deadlyEnv, strconv.FormatInt(bad+512, 10))
	m.must(m.try(faulty, append([]string{"add", c.name}, c.args...)...), faulty, "add")
	c.path = c.status().Device

	// Users of the first half; and one request that kills.
	w := newModel(bad, 4*kib)
	stop := make(chan struct{})
	wait := w.start(m, rng, c.path, load{threads: 4, block: 512, kinds: everything}, stop)
	v, buf := m.open(c.path, os.O_RDWR), m.buffer(8*int(kib))
	answer := make(chan error, 1)
	go func() { answer <- v.write(buf, bad) }()

	deaths := 0
	for err := error(nil); err == nil; {
		select {
		case err = <-answer:
			if err == nil {
				t.Fatal("the request that kills is answered well")
			}
			t.Logf("after %d deaths: %v", deaths, err)
		default:
			if len(daemons()) > 0 {
				time.Sleep(waitInterval)
				continue
			}
			if deaths++; deaths > mostDeaths {
				t.Fatal("it kills and kills")
			}
			m.try(faulty, "recover", c.name) // which may die before it can say so
		}
	}
	close(stop)
	wait()
	w.check(m, c.path)
	if err := v.read(buf, bad+mib); err != nil {
		t.Errorf("a read beside it: %v", err)
	}
	v.close()
	if s := c.status(); s.Mode != "rw" {
		t.Errorf("mode %s", s.Mode)
	}
	os.Unsetenv(deadlyEnv)
	c.end(syscall.SIGTERM) // with a program that is sound the request is served
	c.recover()
	v = m.open(c.path, os.O_RDWR)
	if err := v.write(buf, bad); err != nil {
		t.Errorf("with a sound program: %v", err)
	}
	v.close()
	c.del()
}
