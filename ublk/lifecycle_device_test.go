//go:build device

package ublk

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ublk-clone/ublk-clone/internal/runs"
)

// TestStopWithIO: what is outstanding is answered by the target before the device goes.
func TestStopWithIO(t *testing.T) {
	runs.On(t, runs.EveryKernel)
	for _, recoverable := range []bool{false, true} {
		t.Run(fmt.Sprintf("recoverable %v", recoverable), func(t *testing.T) { testStopWithIO(t, recoverable) })
	}
}

func testStopWithIO(t *testing.T, recoverable bool) {
	m := newMemory(64 * mib)
	o := testOptions(2)
	o.Recoverable = recoverable
	ctl := openTestControl(t)
	d, err := Create(ctl, o)
	must(t, err)
	must(t, d.Start(m.target))
	f := openBlock(t, d)
	m.mu.Lock()
	m.mu.hold = true
	m.mu.Unlock()
	const writers = 8
	results := make(chan error, writers)
	for i := range writers {
		b := pattern(alignedBuffer(t, 4096), i+1)
		go func() {
			_, err := f.WriteAt(b, int64(i)*4096)
			results <- err
		}()
	}
	waitFor(t, "requests to be held", func() bool {
		m.mu.Lock()
		defer m.mu.Unlock()
		return m.mu.held == writers
	})
	var timeout *TimeoutError
	if err := d.Stop(300 * time.Millisecond); !errors.As(err, &timeout) || timeout.Command != "STOP_DEV" {
		t.Fatalf("stop with requests held back: %v, want a TimeoutError", err)
	}
	if err := d.Delete(time.Second); !errors.Is(err, ErrState) {
		t.Errorf("delete of a live device: %v", err)
	}
	m.release()
	must(t, d.Stop(testLimit))
	for range writers {
		if err := <-results; err != nil {
			t.Errorf("a write that was outstanding: %v", err)
		}
	}
	want := make([]byte, 4096)
	for i := range writers {
		if !bytes.Equal(m.disk[i*4096:(i+1)*4096], pattern(want, i+1)) {
			t.Errorf("write %d is not on the disk", i)
		}
	}
	f.Close()
	must(t, d.Delete(testLimit))
	must(t, d.Delete(testLimit))
	if err := d.Start(m.target); !errors.Is(err, ErrState) {
		t.Errorf("start of a deleted device: %v", err)
	}
}

// TestDeleteWaitsForOpeners: a device that somebody has open is deleted when they close it, and
// Delete does not wait longer than it was told.
func TestDeleteWaitsForOpeners(t *testing.T) {
	runs.On(t, runs.EveryKernel)
	m := newMemory(64 * mib)
	d, err := Create(openTestControl(t), testOptions(1))
	must(t, err)
	must(t, d.Start(m.target))
	f := openBlock(t, d)
	must(t, d.Stop(testLimit))
	begin := time.Now()
	var timeout *TimeoutError
	if err := d.Delete(300 * time.Millisecond); !errors.As(err, &timeout) || timeout.Command != "DEL_DEV" {
		t.Fatalf("delete of a device that is open: %v, want a TimeoutError", err)
	}
	if took := time.Since(begin); took > 10*time.Second {
		t.Errorf("it took %v", took)
	}
	f.Close()
	must(t, d.Delete(testLimit))
	waitFor(t, "the device to go", func() bool {
		ids, err := List()
		must(t, err)
		return !slices.Contains(ids, d.Info().ID)
	})
}

func TestTryStop(t *testing.T) {
	runs.On(t, runs.EveryKernel)
	m := newMemory(64 * mib)
	ctl := openTestControl(t)
	d, err := Create(ctl, testOptions(1))
	must(t, err)
	must(t, d.Start(m.target))
	features, err := ctl.Features(context.Background())
	must(t, err)
	f := openBlock(t, d)
	err = ctl.TryStop(context.Background(), d.Info().ID)
	if features.SafeStop && !errors.Is(err, unix.EBUSY) {
		t.Errorf("with the device open: %v, want EBUSY", err)
	}
	f.Close()
	if !features.SafeStop {
		if !errors.Is(err, ErrNotSupported) {
			t.Errorf("a driver without it: %v, want a FeatureError", err)
		}
	} else {
		must(t, ctl.TryStop(context.Background(), d.Info().ID))
	}
	must(t, d.Stop(testLimit))
	must(t, d.Delete(testLimit))
}

// resources is what a device takes: descriptors, threads, nodes, ids.
type resources struct {
	descriptors, threads int
	nodes                []string
	ids                  []int
}

func resourcesNow(t *testing.T) resources {
	t.Helper()
	count := func(dir string) int {
		e, err := os.ReadDir(dir)
		must(t, err)
		return len(e)
	}
	nodes, err := filepath.Glob("/dev/ublk[bc][0-9]*")
	must(t, err)
	ids, err := List()
	must(t, err)
	return resources{count("/proc/self/fd"), count("/proc/self/task"), nodes, ids}
}

// leftBehind compares what there is with before. Threads may be threadSlack more: the runtime makes
// and keeps some, and the kernel's workers go a little later.
func leftBehind(t *testing.T, before resources) {
	t.Helper()
	const threadSlack = 8
	now := resourcesNow(t)
	if now.descriptors != before.descriptors || now.threads > before.threads+threadSlack ||
		!slices.Equal(now.nodes, before.nodes) || !slices.Equal(now.ids, before.ids) {
		t.Errorf("left behind: before %+v, now %+v", before, now)
	}
}

func TestCyclesLeaveNothing(t *testing.T) {
	runs.On(t, runs.EveryKernel, runs.Sampled)
	ctl := openTestControl(t)
	m := newMemory(64 * mib)
	b := alignedBuffer(t, 4096)
	cycle := func(i int) {
		d, err := Create(ctl, testOptions(2))
		must(t, err)
		must(t, d.Start(m.target))
		f, err := os.OpenFile(d.BlockPath(), os.O_RDWR|unix.O_DIRECT, 0)
		must(t, err)
		if _, err := f.WriteAt(pattern(b, i), int64(i)*4096); err != nil {
			t.Fatalf("cycle %d: %v", i, err)
		}
		must(t, f.Close())
		must(t, d.Stop(testLimit))
		must(t, d.Delete(testLimit))
		if !bytes.Equal(m.disk[i*4096:(i+1)*4096], b) {
			t.Fatalf("cycle %d: the write did not arrive", i)
		}
	}
	cycle(0)
	before := resourcesNow(t)
	for i := range 50 {
		cycle(i)
	}
	leftBehind(t, before)
}

// TestFailureLeavesNothing: whatever step fails, nothing is left, and the next device works.
func TestFailureLeavesNothing(t *testing.T) {
	runs.On(t, runs.EveryKernel)
	ctl := openTestControl(t)
	m := newMemory(64 * mib)
	wanted := errors.New("wanted")
	failAt := func(step string) func(string) error {
		return func(s string) error {
			if s == step {
				return wanted
			}
			return nil
		}
	}
	before := resourcesNow(t)
	for _, c := range []struct {
		name   string
		change func(*Options)
		target func(*Queue) Target
		want   string
	}{
		{"add", func(o *Options) { o.fail = failAt("add") }, nil, "wanted"},
		{"compare", func(o *Options) { o.fail = failAt("compare") }, nil, "wanted"},
		{"open", func(o *Options) { o.fail = failAt("open") }, nil, "wanted"},
		{"params", func(o *Options) { o.fail = failAt("params") }, nil, "wanted"},
		{"first queue", func(o *Options) { o.fail = failAt("queue 0") }, m.target, "wanted"},
		{"second queue", func(o *Options) { o.fail = failAt("queue 1") }, m.target, "wanted"},
		{"start", func(o *Options) { o.fail = failAt("start") }, m.target, "wanted"},
		{"no target", func(o *Options) {}, func(*Queue) Target { return nil }, "queue 0: no target"},
		{"no target for the second queue", func(o *Options) {}, func(q *Queue) Target {
			if q.Index() == 1 {
				return nil
			}
			return m.target(q)
		}, "queue 1: no target"},
		{"ring of a queue", func(o *Options) { // START_DEV must not come: 6.12 would wait for ever with a lock held
			o.fail = func(s string) error {
				if s == "start" {
					return errors.New("START_DEV after a queue has failed")
				}
				return nil
			}
		}, func(q *Queue) Target {
			if q.Index() == 1 {
				q.Loop().Fail(wanted)
			}
			return m.target(q)
		}, "wanted"},
		{"panic in set-up", func(o *Options) { o.Fatal = func(error) {} }, func(*Queue) Target { panic("wanted") }, "queue 0 ended"},
		{"parameters that the driver refuses", func(o *Options) { o.Params.LogicalBlockSize, o.Params.Size = 4096, 3*512 },
			nil, "size 1536"},
		{"an id that is taken", nil, nil, "file exists"},
	} {
		t.Run(c.name, func(t *testing.T) {
			o := testOptions(2)
			if c.change == nil { // the id
				d, err := Create(ctl, o)
				must(t, err)
				defer func() { must(t, d.Delete(testLimit)) }()
				o.ID = d.Info().ID
			} else {
				c.change(&o)
			}
			d, err := Create(ctl, o)
			if err == nil && c.target != nil {
				err = d.Start(c.target)
				must(t, d.Stop(testLimit))
				must(t, d.Delete(testLimit))
			}
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want %q", err, c.want)
			}
		})
		leftBehind(t, before)
	}
	d := startDevice(t, testOptions(2), m.target)
	if _, err := openBlock(t, d).ReadAt(alignedBuffer(t, 4096), 0); err != nil {
		t.Error(err)
	}
}

// TestPanicEndsTheProcess runs a server in a process of its own, whose target panics at a sector.
func TestPanicEndsTheProcess(t *testing.T) {
	runs.On(t, runs.EveryKernel)
	const variable = "UBLK_TEST_SERVER"
	if os.Getenv(variable) != "" {
		servePanic(t)
		return
	}
	cmd := exec.Command(os.Args[0], "-test.run=^TestPanicEndsTheProcess$")
	cmd.Env = append(os.Environ(), variable+"=1")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	var id int
	if _, err := fmt.Fscanf(out, "device %d\n", &id); err != nil {
		t.Fatalf("server: %v: %s", err, stderr.String())
	}
	f, err := os.OpenFile(BlockPath(id), os.O_RDWR|unix.O_DIRECT, 0)
	must(t, err)
	if _, err := f.ReadAt(alignedBuffer(t, 4096), 8*mib); err == nil {
		t.Error("a read whose server died succeeded")
	}
	f.Close()
	err = cmd.Wait()
	if cmd.ProcessState.String() != "signal: killed" {
		t.Errorf("the server ended with %v, want SIGKILL", err)
	}
	if got := stderr.String(); !strings.Contains(got, "fatal: queue 0: panic: sector 16384") {
		t.Errorf("its message: %q", got)
	}
	ctl := openTestControl(t)
	must(t, ctl.DelDev(context.Background(), id))
}

// panicTarget panics when it is asked for 8 MiB.
type panicTarget struct{ memoryTarget }

func (p *panicTarget) Request(tag uint16, d Desc) {
	if d.Sector == 8*mib/512 {
		panic("sector " + strconv.FormatUint(d.Sector, 10))
	}
	p.memoryTarget.Request(tag, d)
}

func servePanic(t *testing.T) {
	m := newMemory(64 * mib)
	o := testOptions(1)
	o.Fatal = nil
	d := startDevice(t, o, func(q *Queue) Target { return &panicTarget{memoryTarget{m: m, q: q}} })
	fmt.Printf("device %d\n", d.Info().ID)
	select {}
}
