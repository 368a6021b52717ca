//go:build device

package devicetest

import (
	"bytes"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/ublk-clone/ublk-clone/internal/devicetest/harness"
	"github.com/ublk-clone/ublk-clone/internal/runs"
)

// Requests, deaths and other programs beside exchanges of a layer's table.

// TestDirectMixed: every other 4 MiB are hydrated and direct, and requests of all kinds lie across the
// boundaries; then the rest comes, while they go on.
func TestDirectMixed(t *testing.T) {
	runs.On(t, "7.3", runs.Sampled)
	b := newDirectBench(t, "")
	m, rng := b.M, b.M.Random()
	model := harness.NewModel(directSize, 64*harness.KiB)
	model.Set(0, directSize, harness.Original)
	v := m.Open(harness.LayerPath, os.O_RDWR)
	const piece = 4 * harness.MiB
	direct, buffer := int64(0), m.Buffer(1<<20)
	for off := int64(0); off < directSize-piece; off += 2 * piece {
		for at := off; at < off+piece; at += harness.MiB {
			b.NoError(model.Write(v, buffer, at, false))
		}
		direct += piece
	}
	b.NoError(v.Flush())
	b.waitDirect(direct)
	if lines := strings.Count(m.MustRun("dmsetup", "table", harness.LayerName), "\n"); int64(lines) != directSize/piece {
		t.Errorf("the table has %d targets, not %d", lines, directSize/piece)
	}
	requests := func(n int) {
		for range n {
			length := (1 + rng.Int64N(64)) * 4096
			off := rng.Int64N((directSize-length)/4096) * 4096
			if rng.IntN(2) == 0 { // around a boundary
				off = min(directSize-length, max(0, (1+rng.Int64N(directSize/piece-1))*piece-length/2/4096*4096))
			}
			if rng.IntN(3) == 0 {
				b.NoError(model.Read(v, buffer[:length], off))
				continue
			}
			b.NoError(model.Write(v, buffer[:length], off, rng.IntN(8) == 0))
		}
	}
	requests(harness.Count(300, 3000))
	b.HydrateSlowly()
	requests(harness.Count(100, 1000))
	b.HydrateFast()
	requests(harness.Count(100, 1000))
	b.WaitHydrated()
	b.waitDirect(directAll)
	requests(harness.Count(100, 1000))
	model.Check(m, harness.LayerPath)
	v.Close()
	b.Del()
	b.free()
	model.Check(m, b.dest.Path)
	m.CheckTail(b.dest, directSize)
}

// TestDirectStorm: the layer gets another table again and again, and every now and then the daemon is
// killed, at a random time after that was asked for; fio writes, reads and compares all the while.
func TestDirectStorm(t *testing.T) {
	runs.On(t, "7.3", runs.Sampled)
	b := newDirectBench(t, "")
	m, rng := b.M, b.M.Random()
	b.HydrateFast()
	b.WaitHydrated()
	var out bytes.Buffer
	cmd := exec.Command("fio", "--name=stir", "--filename="+harness.LayerPath, "--size=48m", "--direct=1", "--ioengine=libaio", "--iodepth=8", "--rw=randrw",
		"--bs=16k", "--verify=crc32c", "--verify_fatal=1", "--verify_backlog=32", "--time_based", "--runtime=3600", "--fsync=16", "--randseed=9")
	cmd.Stdout, cmd.Stderr = &out, &out
	b.NoError(cmd.Start())
	exchanges, kills := 0, 0
	for range harness.Count(30, 500) {
		for _, to := range []string{"direct=off", "direct=on"} {
			if rng.IntN(5) > 0 {
				b.Setting(to)
				exchanges++
				continue
			}
			pid := b.Status().PID
			asked := exec.Command(harness.Command, "set", b.Name, to)
			b.NoError(asked.Start())
			time.Sleep(time.Duration(rng.IntN(60)) * time.Millisecond)
			b.NoError(syscall.Kill(pid, syscall.SIGKILL))
			_ = asked.Wait() // it may be too late for it
			b.WaitEnded(pid)
			b.locked()
			b.Recover()
			kills++
		}
	}
	b.Setting("direct=on")
	b.waitDirect(directAll)
	b.NoError(cmd.Process.Signal(os.Interrupt)) // its exit status says that it was interrupted
	if err := cmd.Wait(); !strings.Contains(out.String(), "err= 0") || strings.Contains(out.String(), "verify:") {
		t.Errorf("fio: %v\n%s", err, &out)
	}
	t.Logf("%d exchanges were asked for, %d daemons killed", exchanges, kills)
	for line := range strings.SplitSeq(out.String(), "\n") {
		if strings.Contains(line, "IOPS=") {
			t.Log(strings.TrimSpace(line))
		}
	}
	b.Del()
	b.free()
	m.CheckTail(b.dest, directSize)
}

// TestDirectPreviousRelease: an upgrade, and the way back, with what is hydrated led straight to the
// destination in between: the previous release opens that itself.
func TestDirectPreviousRelease(t *testing.T) {
	runs.On(t, "6.18", runs.Sampled)
	needPrevious(t)
	b := newDirectBenchOf(t, previous)
	m := b.M
	v := m.Open(harness.LayerPath, os.O_RDWR)
	b.wrote(v, 8*harness.MiB, 0x11)
	for round := range 2 {
		m.MustRun(harness.Command, "restart", b.Name)
		b.locked()
		b.HydrateFast()
		b.WaitHydrated()
		b.waitDirect(directAll)
		b.holds(v, 8*harness.MiB, byte(0x11+round))
		b.wrote(v, 8*harness.MiB, byte(0x12+round))
		m.MustRun(previous, "restart", b.Name)
		if n := m.LedTo(b.dest.Number()); n != 0 {
			t.Errorf("%d bytes are direct, of which the previous release knows nothing", n)
		}
		b.holds(v, 8*harness.MiB, byte(0x12+round))
	}
	b.End(syscall.SIGKILL)
	b.Recover()
	b.waitDirect(directAll)
	b.holds(v, 8*harness.MiB, 0x13)
	v.Close()
	b.Del()
	b.free()
}
