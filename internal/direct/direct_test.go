package direct

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ublk-clone/ublk-clone/internal/dm"
)

const mib = 1 << 20

// stretches visits them, each from the first to the second.
func stretches(all ...[2]int64) func(func(off, length int64)) {
	return func(visit func(off, length int64)) {
		for _, s := range all {
			visit(s[0], s[1]-s[0])
		}
	}
}

func TestChoose(t *testing.T) {
	const size = 64*mib + 512
	for name, c := range map[string]struct {
		size    int64
		durable [][2]int64
		want    []dm.Extent
	}{
		"nothing":                {size, nil, nil},
		"all":                    {size, [][2]int64{{0, size}}, []dm.Extent{{Off: 0, Length: 64 * mib}}},
		"all of whole units":     {64 * mib, [][2]int64{{0, 64 * mib}}, []dm.Extent{{Off: 0, Length: 63 * mib}}},
		"too short":              {size, [][2]int64{{0, 4*mib - 512}, {8 * mib, 11 * mib}}, nil},
		"cut to boundaries":      {size, [][2]int64{{mib - 512, 5*mib + 4096}}, []dm.Extent{{Off: mib, Length: 4 * mib}}},
		"short when it is cut":   {size, [][2]int64{{512, 4*mib + 4096}}, nil},
		"stretches that touch":   {size, [][2]int64{{0, 2 * mib}, {2 * mib, 3 * mib}, {3 * mib, 4 * mib}}, []dm.Extent{{Off: 0, Length: 4 * mib}}},
		"two that do not":        {size, [][2]int64{{0, 4 * mib}, {5 * mib, 9 * mib}}, []dm.Extent{{Off: 0, Length: 4 * mib}, {Off: 5 * mib, Length: 4 * mib}}},
		"the last unit":          {size, [][2]int64{{60 * mib, size}}, []dm.Extent{{Off: 60 * mib, Length: 4 * mib}}},
		"the last of whole ones": {64 * mib, [][2]int64{{60 * mib, 64 * mib}}, nil},
		"a small device":         {mib, [][2]int64{{0, mib}}, nil},
	} {
		if got := Choose(c.size, stretches(c.durable...)); !slices.Equal(got, c.want) {
			t.Errorf("%s: %v, expected %v", name, got, c.want)
		}
	}
}

// TestChooseLongest: of too many the longest are taken, and come in order.
func TestChooseLongest(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	var all [][2]int64
	var lengths []int64
	at := int64(0)
	for range 20 * most {
		length := (4 + rng.Int64N(60)) * mib
		all = append(all, [2]int64{at, at + length})
		lengths = append(lengths, length)
		at += length + mib
	}
	got := Choose(at+mib, stretches(all...))
	slices.Sort(lengths)
	want := int64(0)
	for _, length := range lengths[len(lengths)-most:] {
		want += length
	}
	if len(got) != most || Bytes(got) != want {
		t.Errorf("%d extents of %d bytes, expected %d of %d", len(got), Bytes(got), most, want)
	}
	end := int64(-1)
	for _, e := range got {
		if e.Off <= end || !slices.ContainsFunc(all, func(s [2]int64) bool { return s[0] == e.Off && s[1] == e.End() }) {
			t.Errorf("%v behind byte %d", e, end)
		}
		end = e.End()
	}
}

func TestWorth(t *testing.T) {
	const size, twentieth = 64 << 30, 64 << 30 / fraction
	for _, c := range []struct {
		Progress
		want bool
	}{
		{Progress{More: twentieth, Since: Pause}, true}, {Progress{More: twentieth, Since: Pause - 1}, false}, {Progress{More: twentieth - 1, Since: Pause}, false},
		{Progress{More: someBytes, Since: longAgo}, true}, {Progress{More: someBytes, Since: longAgo - 1}, false}, {Progress{More: someBytes - 1, Since: longAgo}, false},
		{Progress{More: mib, Since: Pause, Complete: true}, true}, {Progress{More: 0, Since: longAgo, Complete: true}, false},
		{Progress{More: -mib, Since: longAgo, Complete: true}, false}, {Progress{More: mib, Complete: true}, false},
		{Progress{More: someBytes, Since: longAgo, Hydrating: true}, true},
		{Progress{Direct: someBytes, More: 3 * someBytes, Since: longAgo, Hydrating: true}, true},
		{Progress{Direct: someBytes, More: 3*someBytes - 1, Since: longAgo, Hydrating: true}, false},
		{Progress{Direct: someBytes, More: someBytes, Since: longAgo}, true},
		{Progress{Direct: size / 2, More: twentieth, Since: Pause, Hydrating: true}, true},
	} {
		c.Size = size
		if got := c.Worth(); got != c.want {
			t.Errorf("%+v: %v", c, got)
		}
	}
}

// TestWorthLater: what is not worth it yet, for want of time alone, is looked at again. The rest of a
// device that is complete is, however small it is, also right after an exchange, or a try of one.
func TestWorthLater(t *testing.T) {
	const size = 64 << 30
	for _, c := range []struct {
		Progress
		want bool
	}{
		{Progress{More: size / fraction}, true}, {Progress{More: someBytes}, true}, {Progress{More: someBytes - 1}, false},
		{Progress{More: mib, Complete: true}, true}, {Progress{Complete: true}, false}, {Progress{More: -mib, Complete: true}, false},
		{Progress{Direct: someBytes, More: someBytes, Hydrating: true}, false},
	} {
		c.Size = size
		if got := c.WorthLater(); got != c.want {
			t.Errorf("%+v: %v", c, got)
		}
	}
}

// TestTablesOfAHydration: a whole hydration exchanges at most 24 tables, however fast it is.
func TestTablesOfAHydration(t *testing.T) {
	const size, most = int64(64 << 30), 24
	greatest := 0
	for rate := 100e3; rate <= 10e9; rate *= 1.05 { // bytes a second
		if n := tablesOfAHydration(t, size, rate); n > most {
			t.Errorf("%d tables at %.1f MB/s", n, rate/1e6)
		} else {
			greatest = max(greatest, n)
		}
	}
	t.Logf("at most %d tables", greatest)
}

// tablesOfAHydration goes from one look of the daemon to the next.
func tablesOfAHydration(t *testing.T, size int64, rate float64) (tables int) {
	t.Helper()
	p := Progress{Size: size, Hydrating: true}
	chosen, exchanged := -time.Hour, -time.Hour
	for now := time.Duration(0); ; now += time.Second {
		durable := min(size, int64(rate*now.Seconds()))
		if now-chosen < Pause {
			continue
		}
		chosen, p.Since = now, now-exchanged
		p.Complete = durable == size
		p.Hydrating = !p.Complete
		p.More = Bytes(Choose(size, stretches([2]int64{0, durable}))) - p.Direct
		if p.Worth() {
			tables++
			exchanged, p.Direct = now, p.Direct+p.More
		}
		if p.Complete && (p.Direct == size-Unit || now-exchanged > 2*longAgo) {
			if p.Direct != size-Unit {
				t.Errorf("%d bytes are direct at the end", p.Direct)
			}
			return tables
		}
	}
}

func TestFit(t *testing.T) {
	clone := Limits{LogicalBlock: 4096, DMAAlignment: 512, Discards: true}
	for _, dest := range []Limits{clone, {512, 4, true}} {
		if err := clone.Fit(dest); err != nil {
			t.Error(err)
		}
	}
	for _, dest := range []Limits{{8192, 4, true}, {512, 4096, true}, {512, 4, false}} {
		if clone.Fit(dest) == nil {
			t.Errorf("%+v fits", dest)
		}
	}
}

// TestLimitsAt: of a disk, and of a partition of it.
func TestLimitsAt(t *testing.T) {
	root := t.TempDir()
	put := func(path, text string) {
		path = filepath.Join(root, path)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	put("sda/sda1/partition", "1\n")
	if err := os.Symlink("sda/sda1", filepath.Join(root, "8:1")); err != nil {
		t.Fatal(err)
	}
	if l, err := LimitsAt(filepath.Join(root, "sda")); err == nil {
		t.Errorf("without a queue: %+v", l)
	}
	put("sda/queue/logical_block_size", "4096\n")
	put("sda/queue/dma_alignment", "511\n")
	put("sda/queue/discard_max_bytes", "1048576\n")
	for _, path := range []string{"sda", "8:1"} {
		if l, err := LimitsAt(filepath.Join(root, path)); err != nil || l != (Limits{4096, 512, true}) {
			t.Errorf("%s: %+v, %v", path, l, err)
		}
	}
}

// fakeLayer is a layer as device-mapper has it: a resume makes a table that is loaded the live one.
type fakeLayer struct {
	live, loaded string
	suspended    bool
	fails        map[string]int // how often each is to fail
	did          []string
}

var errFake = errors.New("fake")

func (f *fakeLayer) do(what string) error {
	f.did = append(f.did, what)
	if f.fails[what] > 0 {
		f.fails[what]--
		return fmt.Errorf("%s: %w", what, errFake)
	}
	return nil
}

func (f *fakeLayer) LoadDirect(_ uint64, direct []dm.Extent) error {
	err := f.do("load")
	if err == nil {
		f.loaded = fmt.Sprint(direct)
	}
	return err
}

func (f *fakeLayer) Suspend(limit time.Duration) error {
	if limit != SuspendLimit {
		return errors.New("without the limit")
	}
	err := f.do("suspend")
	if err == nil {
		f.suspended = true
	}
	return err
}

func (f *fakeLayer) Resume() error {
	err := f.do("resume")
	if err == nil {
		if f.loaded != "" {
			f.live, f.loaded = f.loaded, ""
		}
		f.suspended = false
	}
	return err
}

func (f *fakeLayer) Clear() error {
	err := f.do("clear")
	if err == nil {
		f.loaded = ""
	}
	return err
}

// TestExchange: whatever fails, the layer goes on, with one table or the other and none loaded.
func TestExchange(t *testing.T) {
	direct := []dm.Extent{{Off: 0, Length: 4 * mib}}
	for _, c := range []struct {
		fails map[string]int
		did   string
		live  string
		stuck bool
	}{
		{nil, "load suspend resume", fmt.Sprint(direct), false},
		{map[string]int{"load": 1}, "load clear", "old", false},
		{map[string]int{"suspend": 1}, "load suspend clear", "old", false},
		{map[string]int{"resume": 1}, "load suspend resume clear resume", "old", false},
		{map[string]int{"resume": 2}, "load suspend resume clear resume", "old", true},
	} {
		f := &fakeLayer{live: "old", fails: c.fails}
		failing := len(c.fails) > 0
		err := Exchange(f, 7, direct)
		if (err != nil) != failing || failing && !errors.Is(err, errFake) || errors.Is(err, ErrStuck) != c.stuck {
			t.Errorf("%v: %v", c.did, err)
		}
		if did := strings.Join(f.did, " "); did != c.did || f.live != c.live || f.loaded != "" || f.suspended != c.stuck {
			t.Errorf("did %q, expected %q; the table is %q, %q is loaded, suspended: %v", did, c.did, f.live, f.loaded, f.suspended)
		}
	}
}
