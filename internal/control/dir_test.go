package control

import (
	"errors"
	"os"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/ublk-clone/ublk-clone/internal/definition"
	"github.com/ublk-clone/ublk-clone/internal/exit"
	"github.com/ublk-clone/ublk-clone/internal/sys"
)

func TestDefinitionsAreKept(t *testing.T) {
	dir := Dir(t.TempDir() + "/run")
	if names, err := dir.Names(); err != nil || names != nil {
		t.Errorf("names without a directory: %q, %v", names, err)
	}
	if err := dir.Create(); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(string(dir))
	if err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("directory: %v, %v", info, err)
	}
	want := definition.Definition{Name: "b", Source: "/dev/s", Queues: 2, RegionSize: 8192, Settings: definition.Hydration(false), Table: "0 8 clone"}
	for _, def := range []*definition.Definition{&want, {Name: "a"}} {
		if err := dir.Store(def); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(dir.DefinitionPath("-no-name"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if names, err := dir.Names(); err != nil || !slices.Equal(names, []string{"a", "b"}) {
		t.Errorf("names: %q, %v", names, err)
	}
	got, err := dir.Load("b")
	if err != nil || !reflect.DeepEqual(*got, want) {
		t.Errorf("load: %+v, %v", got, err)
	}
	if _, err := dir.Load("c"); exit.Code(err) != exit.NoClone {
		t.Errorf("load of none: %v", err)
	}
}

func TestNameLock(t *testing.T) {
	dir := Dir(t.TempDir())
	l, err := dir.Acquire("c")
	if err != nil {
		t.Fatal(err)
	}
	if !dir.Alive("c") || dir.Alive("other") {
		t.Error("alive does not tell who holds its lock")
	}
	if _, err := dir.Acquire("c"); exit.Code(err) != exit.Busy {
		t.Errorf("second lock: %v", err)
	}
	if err := l.Release(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(dir.LockPath("c")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("lock file after release: %v", err)
	}
	if dir.Alive("c") {
		t.Error("alive after release")
	}
	if l, err = dir.Acquire("c"); err != nil {
		t.Fatal(err)
	}
	if err := l.Release(); err != nil {
		t.Error(err)
	}
}

func TestDefinitionCheck(t *testing.T) {
	good := definition.Definition{Name: "c", Source: "/s", Dest: "/d", Metadata: "/m", Queues: 1, QueueDepth: 1}
	if err := good.Check(); err != nil {
		t.Errorf("good: %v", err)
	}
	for name, spoil := range map[string]func(*definition.Definition){
		"no name":         func(d *definition.Definition) { d.Name = "" },
		"path as name":    func(d *definition.Definition) { d.Name = "../x" },
		"dot first":       func(d *definition.Definition) { d.Name = ".x" },
		"65 letters":      func(d *definition.Definition) { d.Name = strings.Repeat("x", 65) },
		"no source":       func(d *definition.Definition) { d.Source = "" },
		"no dest":         func(d *definition.Definition) { d.Dest = "" },
		"no metadata":     func(d *definition.Definition) { d.Metadata = "" },
		"no queue":        func(d *definition.Definition) { d.Queues = 0 },
		"too many queues": func(d *definition.Definition) { d.Queues = definition.MaxQueues + 1 },
		"no depth":        func(d *definition.Definition) { d.QueueDepth = 0 },
		"too deep":        func(d *definition.Definition) { d.QueueDepth = definition.MaxQueueDepth + 1 },
	} {
		d := good
		spoil(&d)
		if err := d.Check(); exit.Code(err) != exit.Usage {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestDifferences(t *testing.T) {
	rate, other := int64(1<<20), int64(3<<10)
	here := definition.Definition{Name: "c", Source: "/s", Queues: 1, Size: 1 << 30, RegionSize: 4096, Settings: definition.Change{Rate: &rate}}
	for _, c := range []struct {
		name  string
		there func(*definition.Definition)
		want  string
	}{
		{"equal", func(*definition.Definition) {}, ""},
		{"left open", func(d *definition.Definition) { d.Size, d.RegionSize, d.Settings = 0, 0, definition.Change{} }, ""},
		{"another source", func(d *definition.Definition) { d.Source, d.Queues = "/t", 2 }, "source is /s, not /t; queues is 1, not 2"},
		{"copied", func(d *definition.Definition) { d.Copied = true }, "zero-copy is true, not false"},
		{"zeros as data", func(d *definition.Definition) { d.ZerosAsData = true }, "detect-zeroes is true, not false"},
		{"another size", func(d *definition.Definition) { d.Size, d.RegionSize = 1<<20, 8192 }, "size is 1GiB, not 1MiB; region size is 4KiB, not 8KiB"},
		{"another rate", func(d *definition.Definition) { d.Settings = definition.Change{Rate: &other} }, "rate is 1MiB/s, not 3KiB/s"},
		{"one more setting", func(d *definition.Definition) { d.Settings = definition.Hydration(false) }, "hydration is not set, not off"},
	} {
		there := here
		c.there(&there)
		if diff := here.Differences(&there); diff != c.want {
			t.Errorf("%s: %q, want %q", c.name, diff, c.want)
		}
	}
}

func TestFirstSettings(t *testing.T) {
	d := definition.Definition{RegionSize: 4096}
	if s := d.FirstSettings(); s.Batch != 256 || s.Threshold != 1024 || !s.Hydration || !s.ReadThrough || !s.DiscardPassdown || s.Retries != 6 || s.MinRate != 1<<20 || s.Rate != 0 {
		t.Errorf("defaults: %+v", s)
	}
	threshold := uint64(3)
	d = definition.Definition{RegionSize: 1 << 30, Table: "0 8 clone", Settings: definition.Change{Threshold: &threshold}}
	if s := d.FirstSettings(); s.Batch != 1 || s.Threshold != 3 || s.ReadThrough {
		t.Errorf("large regions by a table: %+v", s)
	}
}

// TestNameLockBesideOnlookers: whoever looks whether a daemon lives, of this release or of the one
// before, does not keep a daemon from its name.
func TestNameLockBesideOnlookers(t *testing.T) {
	dir := Dir(t.TempDir())
	stop := make(chan struct{})
	var group sync.WaitGroup
	defer group.Wait()
	defer close(stop)
	for range 4 {
		group.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
					dir.Alive("c")
				}
			}
		})
	}
	for range 300 {
		l, err := dir.Acquire("c")
		if err != nil {
			t.Fatal(err)
		}
		if err := l.Release(); err != nil {
			t.Fatal(err)
		}
	}
}

// TestNameLockOfEarlierRelease: a daemon that has only the flock has the name.
func TestNameLockOfEarlierRelease(t *testing.T) {
	dir := Dir(t.TempDir())
	f, err := os.Create(dir.LockPath("c"))
	if err == nil {
		err = sys.FlockExclusive(int(f.Fd()))
	}
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if !dir.Alive("c") {
		t.Error("it is taken for dead")
	}
	if _, err := dir.Acquire("c"); exit.Code(err) != exit.Busy {
		t.Errorf("a second daemon: %v", err)
	}
}

// TestLastWords: of a daemon that ended by a panic or a fatal error the message is shown, and not
// the end of its trace.
func TestLastWords(t *testing.T) {
	const trace = "\ngoroutine 1 [running]:\nmain.f(0x0)\n\t/a/b.go:1 +0x2\nmain.g()\n\t/a/b.go:3 +0x4\n"
	const line = `{"level":"info","message":"clone is up"}` + "\n"
	for log, want := range map[string]string{
		line + "/usr/sbin/ublk-clone: fatal: preflight: panic: nil" + trace: "/usr/sbin/ublk-clone: fatal: preflight: panic: nil",
		line + "fatal error: out of memory" + trace:                         "fatal error: out of memory",
		"panic: a" + trace + "panic: b" + trace:                             "panic: b",
		"panic: of a former daemon" + trace + line:                          strings.TrimSpace(line),
		"one\ntwo\n": "one\ntwo",
		"":           "",
	} {
		if got := lastWords(log, 2); got != want && !strings.HasSuffix(got, want) || strings.Contains(got, "goroutine") {
			t.Errorf("of %q: %q", log, got)
		}
	}
}
