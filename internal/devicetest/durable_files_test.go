//go:build device

package devicetest

import (
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ublk-clone/ublk-clone/internal/devicetest/harness"
	"github.com/ublk-clone/ublk-clone/internal/exit"
	"github.com/ublk-clone/ublk-clone/internal/runs"
)

// Three things that a boot finds decide whether it clones a source over a destination: the
// definition, the metadata, and the record of the destination. They may lie on three file systems,
// each of which makes durable what it likes when it likes, unless it is told. A cut is what the
// three disks hold at one moment, without what is only in the page cache: what a power cut would
// leave.

// cutBench has the three file systems, and a program that copies their disks behind every step of a
// command (internal/file, StepEnv).
type cutBench struct {
	*harness.Machine
	directory []string // where the file systems are mounted
	cuts      string   // a directory for each cut since the last take
	taken     int      // calls of take
}

// cutNames are the file systems.
var cutNames = []string{"etc", "var", "meta"}

func newCutBench(m *harness.Machine) *cutBench {
	b := &cutBench{Machine: m, cuts: filepath.Join(m.Dir, "cuts")}
	images := ""
	for _, name := range cutNames {
		image := m.File(name+".img", 3*harness.MiB).Path
		m.MustRun("mkfs.ext4", "-q", "-F", "-b", "1024", image)
		b.directory = append(b.directory, filepath.Join(m.Dir, name))
		images += " " + image
	}
	writeNew(m, filepath.Join(m.Dir, "cut"), "#!/bin/sh\nd="+b.cuts+"/$$\nmkdir $d.part && echo \"$*\" >$d.part/step && cp"+images+" $d.part && mv $d.part $d\n", 0o755)
	b.mkdir(append(b.directory, b.cuts)...)
	b.mount(m.Dir)
	m.Cleanup(b.unmount)
	m.Setenv("UBLK_CLONE_ETC_DIR", filepath.Join(b.directory[0], "ublk-clone"))
	m.Setenv("UBLK_CLONE_STATE_DIR", filepath.Join(b.directory[1], "ublk-clone"))
	return b
}

func writeNew(m *harness.Machine, path, text string, mode os.FileMode) {
	m.Helper()
	if err := os.WriteFile(path, []byte(text), mode); err != nil {
		m.Fatal(err)
	}
}

func (b *cutBench) mkdir(paths ...string) {
	b.Helper()
	for _, path := range paths {
		if err := os.MkdirAll(path, 0o755); err != nil {
			b.Fatal(err)
		}
	}
}

// mount mounts the images in dir. The file systems commit nothing by themselves while the test
// runs.
func (b *cutBench) mount(dir string) {
	b.Helper()
	for i, directory := range b.directory {
		b.MustRun("mount", "-o", "loop,commit=900", filepath.Join(dir, cutNames[i]+".img"), directory)
	}
}

func (b *cutBench) unmount() {
	for _, directory := range b.directory {
		for unix.Unmount(directory, 0) == nil {
		}
	}
}

// recording runs a command of the program that takes a cut behind each of its steps, its daemon's
// included.
func (b *cutBench) recording(args ...string) {
	b.Helper()
	b.Setenv("UBLK_CLONE_AT_STEP", filepath.Join(b.Dir, "cut"))
	b.Must(b.TryFor(3*time.Minute, faulty, args...), faulty, args...)
	b.Setenv("UBLK_CLONE_AT_STEP", "")
}

// take gives the cuts since the last call, in order, without those that are the same as the one
// before, and how many there were with these.
func (b *cutBench) take() (cuts []string, n int) {
	b.Helper()
	b.taken++
	taken := fmt.Sprintf("%s-%d", b.cuts, b.taken)
	if err := os.Rename(b.cuts, taken); err != nil {
		b.Fatal(err)
	}
	b.mkdir(b.cuts)
	all, err := filepath.Glob(taken + "/*")
	if err != nil {
		b.Fatal(err)
	}
	all = slices.DeleteFunc(all, func(cut string) bool { return strings.HasSuffix(cut, ".part") }) // of a step that goes on
	slices.SortFunc(all, func(a, c string) int { return b.made(a).Compare(b.made(c)) })
	last := ""
	for _, cut := range all {
		if sum := b.sum(cut); sum != last {
			cuts, last = append(cuts, cut), sum
		}
	}
	b.Logf("%d cuts, %d of them different", len(all), len(cuts))
	return cuts, len(all)
}

// made is when a cut was.
func (b *cutBench) made(cut string) time.Time {
	b.Helper()
	info, err := os.Stat(filepath.Join(cut, "step"))
	if err != nil {
		b.Fatal(err)
	}
	return info.ModTime()
}

func (b *cutBench) sum(cut string) string {
	b.Helper()
	sum := sha256.New()
	for _, name := range cutNames {
		f, err := os.Open(filepath.Join(cut, name+".img"))
		if err == nil {
			_, err = io.Copy(sum, f)
			f.Close()
		}
		if err != nil {
			b.Fatal(err)
		}
	}
	return string(sum.Sum(nil))
}

// boot has a machine start from a cut: if it finds the definition its unit adds the clone, as a
// boot would. It says whether the clone is up, and whether there was a definition.
func (b *cutBench) boot(c *harness.Clone, cut string) (up, defined bool) {
	b.Helper()
	b.unmount()
	b.mount(cut)
	_, err := os.Stat(filepath.Join(b.directory[0], "ublk-clone", c.Name+".toml"))
	defined = err == nil
	o := b.Try(harness.Command, "add", c.Name)
	if o.Code == 0 {
		c.Path = harness.Opened(o.Stdout)
	}
	b.Logf("%s: defined %t, add: exit code %d %s", strings.TrimSpace(b.ReadFile(filepath.Join(cut, "step"))), defined, o.Code, o.Stderr)
	if o.Code != 0 && defined && o.Code != exit.Refused && o.Code != exit.Metadata {
		b.Errorf("the definition is there, and add fails with exit code %d", o.Code)
	}
	return o.Code == 0, defined
}

// TestPowerCutsAroundFinish takes the power away behind every step of import, add and finish. No
// boot clones the source over what the user has written, or over a destination that stands alone
// (I16). Not with a layer (runs.Layered), of which a clonetab has no word.
func TestPowerCutsAroundFinish(t *testing.T) {
	runs.On(t, "7.3", runs.Sampled)
	m := harness.New(t)
	m.DropLiveMaps()
	b := newCutBench(m)
	const size = 8 * harness.MiB
	source, dest := m.NullBlk("src", harness.NullOptions{MiB: size / harness.MiB}), m.NullBlk("dst", harness.NullOptions{MiB: size / harness.MiB})
	m.FillDisk(source, harness.Original)
	c := m.NewClone(source, dest, &harness.Disk{Path: filepath.Join(b.directory[2], "meta")})
	tab := filepath.Join(m.Dir, "clonetab")
	writeNew(m, tab, fmt.Sprintf("%s %s %s %s\n", c.Name, source.Path, dest.Path, filepath.Join(b.directory[2], "meta")), 0o644)

	b.recording("import-clonetab", tab)
	b.recording("add", c.Name, "--no-hydration")
	started, ofStart := b.take()
	c.Path = c.Status().Device
	const written harness.Version = 7
	m.FillDisk(m.Block(c.Path), written)
	c.HydrateFast()
	c.WaitHydrated()
	b.take()
	c.Path = ""
	b.recording("finish", c.Name)
	finished, ofFinish := b.take()
	if ofStart < 30 || ofFinish < 15 {
		t.Fatalf("only %d cuts of add and %d of finish", ofStart, ofFinish)
	}
	users := harness.NewModel(size, 4*harness.KiB)
	users.Set(0, size, written)

	m.OtherBoot()
	retired, still := 0, 0
	for i, cut := range finished {
		if i%harness.Count(2, 1) != 0 && i < len(finished)-1 { // the last one is without the metadata
			continue
		}
		up, defined := b.boot(c, cut)
		if defined {
			still++
		} else {
			retired++
		}
		if up {
			users.Check(m, c.Path)
			c.Del()
		}
		users.Check(m, dest.Path)
	}
	if retired == 0 || still == 0 {
		t.Errorf("%d boots find the definition, %d do not: the cuts show nothing", still, retired)
	}
	if o := m.Try(harness.Command, "import-clonetab", tab); o.Code != exit.Refused || !strings.Contains(o.Stderr, "was finished") {
		t.Errorf("import of what was finished: exit code %d: %s", o.Code, o.Stderr)
	}

	clean := harness.NewModel(size, 4*harness.KiB)
	for i, cut := range started {
		if i%harness.Count(3, 1) != 0 {
			continue
		}
		m.FillDisk(dest, harness.Junk) // nobody had written to it
		if up, _ := b.boot(c, cut); up {
			clean.Check(m, c.Path)
			c.Del()
		}
	}
	b.unmount()
}
