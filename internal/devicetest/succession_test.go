//go:build device

package devicetest

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/ublk-clone/ublk-clone/internal/devicetest/harness"
	"github.com/ublk-clone/ublk-clone/internal/exit"
	"github.com/ublk-clone/ublk-clone/internal/runs"
)

// Nobody gives up what works before the next one is known to work (I13): a daemon that cannot be
// replaced goes on, and a device whose daemon is dead waits until one can serve it.

// Programs that scripts/device-tests builds beside the one under test.
const (
	previous      = harness.Command + "-previous" // the previous release
	otherLiveMap  = harness.Command + "-livemap"  // whose live maps are of another version
	otherMetadata = harness.Command + "-metadata" // whose metadata is
)

// heirBench is a clone with ext4 mounted on it, under users who verify what they read: fio, a
// diary, models. Its source is a file, its destination a link to a loop device over a file.
type heirBench struct {
	*harness.Clone
	tree    *harness.FileTree
	files   *harness.Files
	users   *harness.Users
	source  *harness.Disk
	backing *harness.Disk // of the destination
	loop    *harness.Disk
	link    string
}

// The source is larger than the file system on it, so that a clone can have all that users need and
// not be complete.
const (
	heirSize = 48 * harness.MiB
	heirFS   = 32 * harness.MiB
)

func newHeirBench(t *testing.T, args ...string) *heirBench {
	m := harness.New(t)
	rng := m.Random()
	b := &heirBench{source: m.File("source", heirSize)}
	under := m.NullBlk("src", harness.NullOptions{MiB: heirFS / harness.MiB})
	b.tree = m.NewExt4(rng, under, 4*harness.MiB)
	m.MustRun("dd", "if="+under.Path, "of="+b.source.Path, "bs=1M", "conv=notrunc,sparse", "status=none")
	m.MustRun("dd", "if=/dev/urandom", "of="+b.source.Path, "bs=1M", fmt.Sprintf("seek=%d", heirFS/harness.MiB), fmt.Sprintf("count=%d", (heirSize-heirFS)/harness.MiB), "conv=notrunc", "status=none")
	dir := filepath.Join(m.Dir, "backing")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	b.backing = m.File("backing/dest", heirSize)
	b.loop = m.Loop(b.backing.Path, 512)
	b.link = filepath.Join(m.Dir, "dest")
	b.lead(b.loop.Path)
	b.Clone = m.NewClone(b.source, &harness.Disk{M: &m.Devices, Path: b.link, Size: b.loop.Size}, m.Missing("meta"), append([]string{"--rate", "1MiB/s"}, args...)...)
	return b
}

// lead has the destination's path lead somewhere; "": nowhere.
func (b *heirBench) lead(path string) {
	if err := os.Remove(b.link); err != nil && !os.IsNotExist(err) {
		b.M.Fatal(err)
	}
	if path == "" {
		return
	}
	if err := os.Symlink(path, b.link); err != nil {
		b.M.Fatal(err)
	}
}

// use mounts the clone and lets users begin.
func (b *heirBench) use() {
	b.M.Helper()
	b.tree.Mount(b.Path)
	b.files = b.tree.NewOthers(b.M.Random())
	b.users = b.files.Start()
	b.goesOn()
}

// goesOn waits until users have done something.
func (b *heirBench) goesOn() {
	b.M.Helper()
	before := b.users.Steps.Load()
	b.M.WaitFor(harness.HydrateLimit, "users to go on", func() error {
		if n := b.users.Steps.Load() - before; n < 2 {
			return fmt.Errorf("%d steps", n)
		}
		return nil
	})
}

// end stops the users, and looks at all that they have written.
func (b *heirBench) end() {
	b.M.Helper()
	b.users.Stop()
	b.files.Check()
	b.tree.Check(nil)
	b.tree.Unmount()
	b.tree.Fsck(b.Path)
	b.Clone.Del()
}

// served says that this daemon serves the clone, and users go on.
func (b *heirBench) served(pid int) {
	b.M.Helper()
	if now := b.Status().PID; now != pid {
		b.M.Errorf("the daemon is process %d, not %d any more", now, pid)
	}
	b.goesOn()
}

// stays tries to replace the daemon in vain: it goes on, and so do users.
func (b *heirBench) stays(code int, says string, args ...string) {
	b.M.Helper()
	pid := b.Status().PID
	o := b.M.Try(args[0], args[1:]...)
	b.M.ExpectFailure(o, code, says, "not interrupted")
	b.served(pid)
}

// waits kills the daemon and tries to recover in vain: the device waits.
func (b *heirBench) waits(code int, says string, args ...string) {
	b.M.Helper()
	b.Clone.End(syscall.SIGKILL)
	b.M.ExpectFailure(b.M.Try(args[0], args[1:]...), code, says, "waits for a daemon")
	before := b.users.Steps.Load()
	time.Sleep(500 * time.Millisecond)
	b.M.Logf("%d steps of users ended while the device waited", b.users.Steps.Load()-before)
}

// TestSuccession: whatever a successor does not find as it was costs users nothing but time.
func TestSuccession(t *testing.T) {
	runs.On(t, "6.12", "6.18", runs.Sampled)
	b := newHeirBench(t)
	b.Add()
	b.use()

	// A live map, or metadata, of another version.
	for program, says := range map[string]string{otherLiveMap: "format version", otherMetadata: "newer version"} {
		b.stays(exit.Metadata, says, program, "restart", b.Name)
		b.stays(exit.Metadata, says, program, "restart", "--all")
		b.waits(exit.Metadata, says, program, "recover", b.Name)
		b.Recover()
		b.goesOn()
	}

	// A destination that is gone, and a path that leads to another device of its size.
	b.lead("")
	b.stays(exit.Dest, b.link, harness.Command, "restart", b.Name)
	b.waits(exit.Dest, b.link, harness.Command, "recover", b.Name)
	b.lead(b.loop.Path)
	b.Recover()
	b.goesOn()
	b.lead(b.M.Loop(b.M.File("other", heirSize).Path, 512).Path)
	b.stays(exit.Refused, "something other than", harness.Command, "restart", b.Name)
	b.lead(b.loop.Path)

	// A destination that has grown is the same.
	if err := os.Truncate(b.backing.Path, 64*harness.MiB); err != nil {
		t.Fatal(err)
	}
	b.M.MustRun("losetup", "--set-capacity", b.loop.Path)
	pid := b.Status().PID
	b.M.MustRun(harness.Command, "restart", "--all")
	if b.Status().PID == pid {
		t.Error("the daemon of a grown destination was not replaced")
	}
	b.goesOn()
	b.Clone.End(syscall.SIGKILL)
	b.Recover()
	b.goesOn()

	// One whose backing file has lost its name to another is the same, or is refused.
	dir := filepath.Dir(b.backing.Path)
	b.M.MustRun("mount", "-t", "tmpfs", "tmpfs", dir)
	b.M.File("backing/dest", 64*harness.MiB)
	if o := b.M.Try(harness.Command, "restart", b.Name); o.Code != 0 && !strings.Contains(o.Stderr, "not interrupted") {
		t.Errorf("over another backing file restart says %q", o.Stderr)
	}
	b.goesOn()
	b.Clone.End(syscall.SIGKILL)
	o := b.M.Try(harness.Command, "recover", b.Name)
	b.M.MustRun("umount", dir)
	if o.Code != 0 {
		b.M.ExpectFailure(o, exit.Metadata, "waits for a daemon")
		b.Recover()
	}
	b.goesOn()
	b.end()
}

// TestSuccessionSource: a source that was touched, or has changed, takes nothing from users: a
// daemon goes on, and if it is killed the next one serves what is hydrated, until the source is as
// it was.
func TestSuccessionSource(t *testing.T) {
	runs.On(t, "6.18", runs.Sampled)
	b := newHeirBench(t)
	b.Add()
	b.use()
	b.hydrateFileSystem()
	st, err := os.Stat(b.source.Path)
	if err != nil {
		t.Fatal(err)
	}
	flip := func() {
		f, err := os.OpenFile(b.source.Path, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		one := make([]byte, 1)
		if _, err := f.ReadAt(one, 100); err != nil { // before the file system
			t.Fatal(err)
		}
		one[0] ^= 1
		if _, err := f.WriteAt(one, 100); err != nil {
			t.Fatal(err)
		}
	}
	setBack := func() { _ = os.Chtimes(b.source.Path, st.ModTime(), st.ModTime()) }
	for _, cause := range []struct {
		name        string
		brk, mended func()
	}{
		{"touched", func() { _ = os.Chtimes(b.source.Path, time.Now(), time.Now()) }, setBack},
		{"a byte of the sample changed", func() { flip(); setBack() }, func() { flip(); setBack() }},
		{"gone", func() { b.M.MustRun("mv", b.source.Path, b.source.Path+".away") }, func() { b.M.MustRun("mv", b.source.Path+".away", b.source.Path) }},
	} {
		cause.brk()
		o := b.M.Try(harness.Command, "restart", b.Name)
		t.Logf("%s: restart: exit status %d: %s", cause.name, o.Code, o.Stderr)
		if o.Code != 0 && !strings.Contains(o.Stderr, "not interrupted") {
			t.Errorf("%s: restart says %q", cause.name, o.Stderr)
		}
		b.goesOn()
		b.Clone.End(syscall.SIGKILL)
		b.Recover()
		b.goesOn()
		if s := b.Status(); s.State != "stalled" {
			t.Errorf("%s: recovered, the state is %s: %s", cause.name, s.State, s.Reason)
		}
		cause.mended()
		b.M.MustRun(harness.Command, "resume", b.Name)
		b.goesOn()
		if s := b.Status(); s.State == "stalled" {
			t.Errorf("%s: mended, the state is %s: %s", cause.name, s.State, s.Reason)
		}
	}
	b.end()
}

// hydrateFileSystem hydrates what users need, and not all: a clone that is complete needs no
// source. Hydration goes from the beginning to the end.
func (b *heirBench) hydrateFileSystem() {
	b.M.Helper()
	b.Setting("rate=4MiB/s")
	b.M.WaitFor(harness.HydrateLimit, "the file system to be hydrated", func() error {
		if n := b.Status().Bytes.Remaining; n > (heirSize-heirFS)*3/4 {
			return fmt.Errorf("%d bytes are left", n)
		}
		return nil
	})
	b.Setting("rate=16KiB/s")
	if b.Status().State == "hydrated" {
		b.M.Fatal("it is complete: the test shows nothing")
	}
}

// hasPrevious says whether the previous release could be built.
func hasPrevious() bool {
	_, err := exec.LookPath(previous)
	return err == nil
}

// needPrevious skips a test where it could not.
func needPrevious(t *testing.T) {
	t.Helper()
	if !hasPrevious() {
		t.Skip("scripts/device-tests could not build the previous release, whose commit this shallow clone lacks (git fetch --unshallow)")
	}
}

// TestPreviousRelease: an upgrade from the previous release, and the way back, with users who
// notice nothing.
func TestPreviousRelease(t *testing.T) {
	runs.On(t, "6.12", runs.Sampled)
	needPrevious(t)
	b := newHeirBench(t)
	b.Path = harness.Opened(b.M.MustRun(previous, append([]string{"add", b.Name}, b.Args...)...))
	b.use()
	for i, program := range []string{harness.Command, previous, harness.Command, previous, harness.Command} {
		if i == 3 { // a daemon that has died is recovered by the other release
			b.Clone.End(syscall.SIGKILL)
			b.M.MustRun(program, "recover", b.Name)
		} else {
			b.M.MustRun(program, "restart", b.Name)
		}
		exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", b.Status().PID))
		if err != nil || filepath.Base(exe) != program {
			t.Errorf("the daemon is %q, not %s: %v", exe, program, err)
		}
		b.goesOn()
	}
	b.lead("") // what the previous release finds out too late is found out before it leaves
	b.M.MustRun(previous, "status", b.Name)
	b.lead(b.loop.Path)
	b.end()
}

// TestRestartWhileSourceHangs: a daemon with reads of a source that does not answer cannot be
// replaced, and says so in time; what is hydrated is served all along. If it is killed the next one
// serves that too.
func TestRestartWhileSourceHangs(t *testing.T) {
	runs.On(t, "7.3", runs.Sampled)
	m := harness.New(t)
	source, dest := m.FaultyDisk("src", 16), m.NullBlk("dst", harness.NullOptions{MiB: 16})
	m.FillDisk(source.Disk, harness.Original)
	m.FillDisk(dest, harness.Junk)
	w := harness.NewModel(16*harness.MiB, 64*harness.KiB)
	w.Set(0, 16*harness.MiB, harness.Original)
	c := m.AddClone(source.Disk, dest, m.Missing("meta"), "--region-size", "64KiB", "--no-hydration")
	v := m.Open(c.Path, os.O_RDWR)
	for off := int64(0); off < harness.MiB; off += 64 * harness.KiB {
		c.NoError(w.Write(v, m.Buffer(64*1024), off, false))
	}
	reader := m.NewUsers() // of what is hydrated
	var longest time.Duration
	buf := m.Buffer(4096)
	reader.KeepOn("reader", func() error {
		begin := time.Now()
		err := w.Read(v, buf, 0)
		longest = max(longest, time.Since(begin))
		return err
	})
	restart := func(says string) {
		t.Helper()
		pid := c.Status().PID
		o := m.Try(harness.Command, "restart", c.Name)
		if (o.Code != exit.Timeout && o.Code != exit.Source) || !strings.Contains(o.Stderr, "not interrupted") || !strings.Contains(o.Stderr, says) {
			t.Errorf("restart with a source that hangs: exit status %d: %s", o.Code, o.Stderr)
		}
		if now := c.Status().PID; now != pid {
			t.Errorf("the daemon is process %d, not %d any more", now, pid)
		}
	}
	source.Hold()
	restart("source") // nothing is in flight
	waiting := m.Open(c.Path, os.O_RDONLY)
	waited := make(chan error, 1)
	other := m.Buffer(64 * 1024)
	go func() { waited <- w.Read(waiting, other, 8*harness.MiB) }()
	restart("source")
	pid := c.Status().PID // SIGTERM is no better
	c.NoError(syscall.Kill(pid, syscall.SIGTERM))
	m.WaitFor(harness.StandLimit, "SIGTERM to be refused", func() error {
		if log := m.ReadFile(filepath.Join(harness.RunDir, c.Name+".log")); !strings.Contains(log, "SIGTERM is not obeyed") {
			return fmt.Errorf("the log has %d bytes", len(log))
		}
		return nil
	})
	if slices.Contains(harness.Daemons(), pid) {
		reader.Stop()
		m.InTime(time.Second, "the longest read of what is hydrated", longest)
	} else {
		t.Error("the daemon has ended")
	}
	source.Release()
	c.NoError(<-waited)
	m.MustRun(harness.Command, "restart", c.Name)
	c.NoError(w.Read(v, other, 4*harness.MiB))

	source.Hold()
	c.End(syscall.SIGKILL)
	read := make(chan error, 1)
	go func() { read <- w.Read(v, buf, 0) }()
	c.Recover()
	c.NoError(<-read)
	if s := c.Status(); s.State != "stalled" {
		t.Errorf("recovered without an answer of the source: %s: %s", s.State, s.Reason)
	}
	source.Release()
	m.MustRun(harness.Command, "resume", c.Name)
	w.Check(m, c.Path)
	v.Close()
	waiting.Close()
	c.Del()
}

// TestSuccessionWithoutRoom: with /run full, in bytes or in files, /var/lib read-only, and a
// process that gets no memory or no threads, a daemon is replaced or goes on, and a dead one's
// device waits at worst. Nothing but room is needed then.
func TestSuccessionWithoutRoom(t *testing.T) {
	runs.On(t, "6.18", runs.Sampled)
	b := newHeirBench(t)
	b.Add()
	b.use()
	replaced := func(what string, args ...string) {
		t.Helper()
		pid := b.Status().PID
		o := b.M.Try(args[0], args[1:]...)
		t.Logf("%s: restart: exit status %d: %s", what, o.Code, o.Stderr)
		if now := b.Status().PID; o.Code == 0 == (now == pid) {
			t.Errorf("%s: restart has ended with %d, the daemon was process %d and is %d", what, o.Code, pid, now)
		}
		b.goesOn()
	}
	recovered := func(what string, args ...string) (served bool) {
		t.Helper()
		b.Clone.End(syscall.SIGKILL)
		o := b.M.Try(args[0], args[1:]...)
		t.Logf("%s: recover: exit status %d: %s", what, o.Code, o.Stderr)
		if _, err := os.Stat(b.Path); err != nil {
			t.Fatalf("%s: the device has gone: %v", what, err)
		}
		return o.Code == 0
	}
	run := func(option string) { b.M.MustRun("mount", "-o", "remount,"+option, "/run") }

	var fs syscall.Statfs_t
	b.NoError(syscall.Statfs("/run", &fs))
	for what, option := range map[string]string{
		"/run full":          fmt.Sprintf("size=%d", (fs.Blocks-fs.Bfree)*uint64(fs.Bsize)),
		"/run full of files": fmt.Sprintf("nr_inodes=%d", fs.Files-fs.Ffree),
	} {
		run(option)
		replaced(what, harness.Command, "restart", b.Name)
		served := recovered(what, harness.Command, "recover", b.Name)
		run("size=50%,nr_inodes=100000")
		if !served {
			b.Recover()
		}
		b.goesOn()
	}

	const lib = "/var/lib/ublk-clone"
	b.NoError(os.MkdirAll(lib, 0o700))
	b.M.MustRun("mount", "--bind", lib, lib)
	b.M.MustRun("mount", "-o", "remount,bind,ro", lib)
	b.M.MustRun(harness.Command, "restart", b.Name)
	b.goesOn()
	b.Clone.End(syscall.SIGKILL)
	b.Recover()
	b.goesOn()
	b.M.MustRun("umount", lib)

	for _, limit := range []string{"--as=400000000:400000000", "--nofile=5:5", "--as=1500000000:1500000000"}[:harness.Count(1, 3)] {
		replaced(limit, "prlimit", limit, harness.Command, "restart", b.Name)
		if !recovered(limit, "prlimit", limit, harness.Command, "recover", b.Name) {
			b.Recover()
		}
		b.goesOn()
	}
	for _, most := range []int{9, 1, 14}[:harness.Count(1, 3)] {
		group := pidGroup(b.M, most)
		in := []string{"sh", "-c", "echo $$ >" + group + "/cgroup.procs && exec " + harness.Command + " \"$@\"", "sh"}
		what := fmt.Sprintf("%d threads", most)
		replaced(what, append(in, "restart", b.Name)...)
		if !recovered(what, append(in, "recover", b.Name)...) {
			b.Recover()
		}
		b.goesOn()
	}
	b.M.MustRun(harness.Command, "restart", b.Name) // out of the group
	b.end()
}

// pidGroup makes a control group of so many processes and threads at most.
func pidGroup(m *harness.Machine, most int) string {
	m.Helper()
	root := filepath.Join(m.Dir, "cgroup")
	if err := os.Mkdir(root, 0o755); err == nil {
		m.MustRun("mount", "-t", "cgroup2", "cgroup2", root)
		m.Cleanup(func() { m.MustRun("umount", root) })
		m.WriteFile(filepath.Join(root, "cgroup.subtree_control"), "+pids")
	}
	group := filepath.Join(root, fmt.Sprintf("most%d", most))
	if err := os.Mkdir(group, 0o755); err != nil {
		m.Fatal(err)
	}
	m.Cleanup(func() {
		m.WaitFor(harness.CleanLimit, "the group to be empty", func() error { return os.Remove(group) })
	})
	m.WriteFile(filepath.Join(group, "pids.max"), fmt.Sprint(most))
	return group
}
