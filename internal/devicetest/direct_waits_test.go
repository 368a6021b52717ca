//go:build device

package devicetest

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ublk-clone/ublk-clone/internal/devicetest/harness"
	"github.com/ublk-clone/ublk-clone/internal/direct"
	"github.com/ublk-clone/ublk-clone/internal/runs"
)

// What exchanges of a layer's table cost: how many there are, and how long users wait for one.

// asked is what the daemon answers to a request, without a command, whose start takes the CPU of a
// guest for longer than an exchange does.
func (b *directBench) asked(request string) (answer struct {
	Error  *struct{ Cause string }
	Events []struct{ Kind, Text string }
}) {
	b.M.Helper()
	conn, err := net.Dial("unix", filepath.Join(harness.RunDir, b.Name+".sock"))
	if err == nil {
		_, err = conn.Write([]byte(request + "\n"))
		err = errors.Join(err, json.NewDecoder(conn).Decode(&answer), conn.Close())
	}
	if err != nil || answer.Error != nil {
		b.M.Fatalf("asked for %s, the daemon says: %v, %+v", request, err, answer.Error)
	}
	return answer
}

func (b *directBench) change(setting string, value any) {
	b.M.Helper()
	b.asked(fmt.Sprintf(`{"verb":"set","change":{"%s":%v}}`, setting, value))
}

// TestDirectTables: a whole hydration of 64 GiB, which would leave time for fifty exchanges, has 24
// at most, and then all is direct.
func TestDirectTables(t *testing.T) {
	runs.On(t, "6.18", runs.LeapingClock, runs.Sampled)
	const size, islands, most = 64 * gib, 256, 24
	m := harness.New(t)
	source := sparseFile(m, filepath.Join(m.Dir, "source"), size, islands)
	b := directBenchOf(m, source, m.Loop(m.File("dest", size).Path, harness.Sector), "--region-size", "1MiB", "--rate", "512KiB/s", "--min-rate", "none")
	b.add(harness.Command)
	from := time.Now()
	b.change("hydration", true)
	m.WaitFor(time.Hour, "the clone to be hydrated and direct", func() error {
		time.Sleep(direct.Pause / 2) // a look takes the CPU, and idle time is skipped
		if s := b.Status(); s.State != "hydrated" || s.Bytes.Direct != size-harness.MiB {
			return fmt.Errorf("%s, %d bytes are direct", s.State, s.Bytes.Direct)
		}
		return nil
	})
	took := time.Since(from)
	if took < 2*most*direct.Pause {
		t.Errorf("it has taken %v, in which there cannot be many more exchanges: the test shows nothing", took)
	}
	tables := 0
	for _, ev := range b.asked(`{"verb":"events","after":0}`).Events {
		if ev.Kind != "direct" {
			continue
		}
		tables++
		t.Log(ev.Text)
		if !strings.Contains(ev.Text, "are led straight to") {
			t.Error("that is no exchange")
		}
	}
	t.Logf("%d tables in %v", tables, took.Round(time.Second))
	if tables > most || tables < most/2 {
		t.Errorf("%d tables were exchanged", tables)
	}
	b.Del()
	b.free()
}

// warmUp is how many of a user's requests are not measured: what all of them need first comes from
// wherever it is.
const warmUp = 16

// user has one request at work at a time, in the first bytes of the layer, and so do some others
// beside it. stop is how long its longest request took.
func (b *directBench) user(others int, bytes int64) (stop func() time.Duration) {
	b.M.Helper()
	end, warm := make(chan struct{}), make(chan struct{})
	var wait sync.WaitGroup
	var longest time.Duration
	for i := range others + 1 {
		v, buf, rng := b.M.Open(harness.LayerPath, os.O_RDWR), b.M.Buffer(4096), rand.New(rand.NewPCG(harness.Seed(), uint64(i)))
		wait.Go(func() {
			defer v.Close()
			for n := 0; ; n++ {
				select {
				case <-end:
					return
				default:
				}
				off, from, err := rng.Int64N(bytes/4096)*4096, time.Now(), error(nil)
				if n%2 == 0 {
					err = v.Write(buf, off)
				} else {
					err = v.Read(buf, off)
				}
				b.NoError(err)
				if i == 0 && n >= warmUp {
					longest = max(longest, time.Since(from))
				}
				if i == 0 && n == warmUp {
					close(warm)
				}
			}
		})
	}
	<-warm
	return func() time.Duration {
		close(end)
		wait.Wait()
		return longest
	}
}

// TestDirectWait: an exchange adds at most 50 ms to what a user waits for a request, with a disk that
// answers at once, soon, or so late that most exchanges do not come about.
func TestDirectWait(t *testing.T) {
	runs.On(t, "7.3", runs.CountingClock, runs.Sampled)
	needDirect(t)
	for _, latency := range []time.Duration{0, 20 * time.Millisecond, 120 * time.Millisecond} {
		t.Run(latency.String(), func(t *testing.T) {
			m := harness.New(t)
			options := harness.NullOptions{MiB: directSize / harness.MiB, Discard: true, Latency: latency}
			if latency > 0 {
				options.Depth = 128
			}
			b := directBenchOf(m, m.NullBlk("src", harness.NullOptions{MiB: directSize / harness.MiB}), m.NullBlk("dst", options), "--force") // blkid may take long
			b.add(harness.Command)
			b.HydrateFast()
			b.WaitHydrated()
			b.Setting("direct=off")
			exchanges := 0
			longest := func(setting string, values ...any) time.Duration {
				stop := b.user(2, directAll)
				for range harness.Count(6, 100) {
					for _, value := range values {
						b.change(setting, value)
						if b.Status().Bytes.Direct == directAll {
							exchanges++
						}
						time.Sleep(100 * time.Millisecond)
					}
				}
				return stop()
			}
			alone := longest("retries", 7, 8)
			if exchanges > 0 {
				t.Fatal("tables are exchanged though nothing is to be direct")
			}
			beside := longest("direct", true, false)
			t.Logf("the longest of a user's requests took %v without exchanges, %v beside %d", alone, beside, exchanges)
			if exchanges < 5 && latency < direct.SuspendLimit {
				t.Errorf("%d exchanges have come about", exchanges)
			}
			m.InTime(alone+direct.SuspendLimit, "the longest request beside exchanges", beside)
			b.Del()
			b.free()
		})
	}
}

// TestDirectSourceHangs: a request waits for a source that does not answer, and the suspension of
// the layer would wait for that request. So none is tried, long before that counts as an outage, and
// others do not wait; when the source answers, there is an exchange.
func TestDirectSourceHangs(t *testing.T) {
	runs.On(t, "7.3", runs.CountingClock, runs.Sampled)
	needDirect(t)
	const hydrated = directSize / 2
	m := harness.New(t)
	source := m.FaultyDisk("src", directSize/harness.MiB)
	b := directBenchOf(m, source.Disk, m.NullBlk("dst", harness.NullOptions{MiB: directSize / harness.MiB, Discard: true}))
	b.add(harness.Command)
	m.FillPart(m.Block(m.MapperPath(harness.LayerName)), 0, hydrated, harness.Zeros)
	b.waitDirect(hydrated)
	b.change("direct", false)
	b.waitDirect(0)
	longest := func(during func()) time.Duration {
		stop := b.user(0, hydrated)
		during()
		return stop()
	}
	alone := longest(func() { time.Sleep(2 * time.Second) })
	source.Hold()
	hung, ended := m.Open(harness.LayerPath, os.O_RDONLY), make(chan error, 1)
	go func() { ended <- hung.Read(m.Buffer(4096), hydrated+harness.MiB) }()
	beside := longest(func() {
		time.Sleep(2 * time.Second) // nobody knows at once that it hangs
		b.change("direct", true)
		time.Sleep(3 * direct.Again)
	})
	t.Logf("the longest of a user's requests took %v, and %v with a source that hangs", alone, beside)
	if s := b.Status(); s.Bytes.Direct != 0 || m.LedTo(b.dest.Number()) != 0 || s.State == "stalled" {
		t.Errorf("%s, %d bytes are direct", s.State, s.Bytes.Direct)
	}
	m.InTime(alone+direct.SuspendLimit/2, "the longest request", beside)
	source.Release()
	b.NoError(<-ended)
	hung.Close()
	b.waitDirect(hydrated)
	b.Del()
	b.free()
}
