//go:build device

package ublk

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ublk-clone/ublk-clone/ublk/uring"
	"golang.org/x/sys/unix"
)

// removeDevice stops and deletes a device, whoever made it. Its server, if it has one, is a process
// that this one has killed.
func removeDevice(t *testing.T, id int) {
	t.Helper()
	ctl, err := controlOfAll()
	must(t, err)
	ctx, cancel := context.WithTimeout(context.Background(), 2*testLimit)
	defer cancel()
	err = errors.Join(ctl.StopDev(ctx, id), ctl.DelDev(ctx, id))
	if err != nil && !errors.Is(err, unix.ENODEV) {
		t.Errorf("remove device %d: %v", id, err)
	}
}

// clients use a block device beside what is done to its server: each writes to a part of its own
// and reads back what it wrote, from all CPUs and so through all queues. No error and no wrong byte
// may come.
type clients struct {
	t       *testing.T
	stop    atomic.Bool
	begun   atomic.Int64 // clients that have done an operation
	done    atomic.Int64 // operations
	longest atomic.Int64 // ns
	wg      sync.WaitGroup
}

const clientPart = mib

// startClients returns when all of them are at work: 6.18 looks for partitions when a device has
// started already, and who opens it waits for that, which is for ever if the server holds those
// reads.
func startClients(t *testing.T, id, n int) *clients {
	t.Helper()
	c := &clients{t: t}
	for i := range n {
		c.wg.Go(func() { c.run(id, i) })
	}
	t.Cleanup(func() { c.stop.Store(true) })
	waitFor(t, "the clients to begin", func() bool { return c.begun.Load() == int64(n) || t.Failed() })
	return c
}

// end lets the clients do some more operations each, ends them, and tells how long the longest one
// took.
func (c *clients) end() time.Duration {
	c.t.Helper()
	before := c.done.Load()
	waitFor(c.t, "the clients to go on", func() bool { return c.done.Load() > before+20 || c.t.Failed() })
	c.stop.Store(true)
	c.wg.Wait()
	return time.Duration(c.longest.Load())
}

func (c *clients) run(id, i int) {
	runtime.LockOSThread() // not unlocked: the thread's affinity goes with it
	var set unix.CPUSet
	set.Set(i % runtime.NumCPU())
	f, err := os.OpenFile(BlockPath(id), os.O_RDWR|unix.O_DIRECT, 0)
	if err == nil {
		err = unix.SchedSetaffinity(0, &set)
	}
	if err != nil {
		c.t.Error(err)
		return
	}
	defer f.Close()
	b, err := uring.MapBuffer(4096)
	if err != nil {
		c.t.Error(err)
		return
	}
	defer func() { _ = uring.UnmapBuffer(b) }() // as it was mapped, it is unmapped
	want := make([]byte, 4096)
	random := rand.New(rand.NewPCG(uint64(i), 7))
	for step := 1; !c.stop.Load() && !c.t.Failed(); step++ {
		off := int64(i*clientPart) + random.Int64N(clientPart/4096)*4096
		c.operation(step, func() error { _, err := f.WriteAt(pattern(b, i<<16|step&0xffff), off); return err })
		if step == 1 {
			c.begun.Add(1)
		}
		clear(b)
		c.operation(step, func() error { _, err := f.ReadAt(b, off); return err })
		if !bytes.Equal(b, pattern(want, i<<16|step&0xffff)) {
			c.t.Errorf("client %d, step %d: what was written at %d is not read back", i, step, off)
		}
	}
}

func (c *clients) operation(step int, do func() error) {
	begin := time.Now()
	if err := do(); err != nil {
		c.t.Errorf("step %d: %v", step, err)
	}
	took := time.Since(begin).Nanoseconds()
	for old := c.longest.Load(); took > old && !c.longest.CompareAndSwap(old, took); old = c.longest.Load() {
	}
	c.done.Add(1)
}

// inFlight is the number of requests that device id has and has not answered.
func inFlight(t *testing.T, id int) int {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/sys/block/ublkb%d/inflight", id))
	must(t, err)
	var reads, writes int
	_, err = fmt.Sscan(string(text), &reads, &writes)
	must(t, err)
	return reads + writes
}

// controlOfAll is for questions, by all tests.
var controlOfAll = sync.OnceValues(OpenControl)

func stateOf(t *testing.T, id int) Info {
	t.Helper()
	ctl, err := controlOfAll()
	must(t, err)
	info, err := ctl.GetDevInfo(context.Background(), id)
	must(t, err)
	return info
}
