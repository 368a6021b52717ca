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

	"github.com/ublk-clone/ublk-clone/internal/exit"
	"github.com/ublk-clone/ublk-clone/internal/runs"
)

// Nobody gives up what works before the next one is known to work (I13): a daemon that cannot be replaced goes on, and a
// device whose daemon is dead waits until one can serve it.

// Programs that scripts/device-tests builds beside the one under test.
const (
	previous      = command + "-previous" // the previous release
	otherLiveMap  = command + "-livemap"  // whose live maps are of another version
	otherMetadata = command + "-metadata" // whose metadata are
)

// heirBench is a clone with ext4 mounted on it, under users who verify what they read: fio, a diary, models. Its source is a
// file, its destination a link to a loop device over a file.
type heirBench struct {
	*clone
	tree    *fileTree
	files   *files
	users   *users
	source  *disk
	backing *disk // of the destination
	loop    *disk
	link    string
}

// The source is larger than the file system on it, so that a clone can have all that users need and not be complete.
const (
	heirSize = 48 * mib
	heirFS   = 32 * mib
)

func newHeirBench(t *testing.T, args ...string) *heirBench {
	m := newMachine(t)
	rng := m.random()
	b := &heirBench{source: m.file("source", heirSize)}
	under := m.nullBlk("src", nullOptions{mib: heirFS / mib})
	b.tree = m.newExt4(rng, under, 4*mib)
	m.run("dd", "if="+under.path, "of="+b.source.path, "bs=1M", "conv=notrunc,sparse", "status=none")
	m.run("dd", "if=/dev/urandom", "of="+b.source.path, "bs=1M", fmt.Sprintf("seek=%d", heirFS/mib), fmt.Sprintf("count=%d", (heirSize-heirFS)/mib), "conv=notrunc", "status=none")
	folder := filepath.Join(m.dir, "backing")
	if err := os.Mkdir(folder, 0o755); err != nil {
		t.Fatal(err)
	}
	b.backing = m.file("backing/dest", heirSize)
	b.loop = m.loop(b.backing.path, 512)
	b.link = filepath.Join(m.dir, "dest")
	b.lead(b.loop.path)
	b.clone = m.newClone(b.source, &disk{m: m, path: b.link, size: b.loop.size}, m.missing("meta"), append([]string{"--rate", "1MiB/s"}, args...)...)
	return b
}

// lead has the destination's path lead somewhere; "": nowhere.
func (b *heirBench) lead(path string) {
	if err := os.Remove(b.link); err != nil && !os.IsNotExist(err) {
		b.m.Fatal(err)
	}
	if path == "" {
		return
	}
	if err := os.Symlink(path, b.link); err != nil {
		b.m.Fatal(err)
	}
}

// use mounts the clone and lets users begin.
func (b *heirBench) use() {
	b.m.Helper()
	b.tree.mount(b.path)
	b.files = b.tree.newOthers(b.m.random())
	b.users = b.files.start()
	b.goesOn()
}

// goesOn waits until users have done something.
func (b *heirBench) goesOn() {
	b.m.Helper()
	before := b.users.steps.Load()
	b.m.waitFor(hydrateLimit, "users to go on", func() error {
		if n := b.users.steps.Load() - before; n < 2 {
			return fmt.Errorf("%d steps", n)
		}
		return nil
	})
}

// end stops the users, and looks at all that they have written.
func (b *heirBench) end() {
	b.m.Helper()
	b.users.stop()
	b.files.check()
	b.tree.check(nil)
	b.tree.unmount()
	b.tree.examine(b.path)
	b.clone.del()
}

// served says that this daemon serves the clone, and users go on.
func (b *heirBench) served(pid int) {
	b.m.Helper()
	if now := b.status().PID; now != pid {
		b.m.Errorf("the daemon is process %d, not %d any more", now, pid)
	}
	b.goesOn()
}

// stays tries to replace the daemon in vain: it goes on, and so do users.
func (b *heirBench) stays(code int, says string, args ...string) {
	b.m.Helper()
	pid := b.status().PID
	o := b.m.try(args[0], args[1:]...)
	b.m.expectFailure(o, code, says, "not interrupted")
	b.served(pid)
}

// waits kills the daemon and tries to recover in vain: the device waits.
func (b *heirBench) waits(code int, says string, args ...string) {
	b.m.Helper()
	b.clone.end(syscall.SIGKILL)
	b.m.expectFailure(b.m.try(args[0], args[1:]...), code, says, "waits for a daemon")
	before := b.users.steps.Load()
	time.Sleep(500 * time.Millisecond)
	b.m.Logf("%d steps of users ended while the device waited", b.users.steps.Load()-before)
}

// TestSuccession: whatever a successor does not find as it was costs users nothing but time.
func TestSuccession(t *testing.T) {
	runs.On(t, "6.12", "6.18")
	b := newHeirBench(t)
	b.add()
	b.use()

	// A live map, or metadata, of another version.
	for program, says := range map[string]string{otherLiveMap: "format version", otherMetadata: "newer version"} {
		b.stays(exit.Metadata, says, program, "restart", b.name)
		b.stays(exit.Metadata, says, program, "restart", "--all")
		b.waits(exit.Metadata, says, program, "recover", b.name)
		b.recover()
		b.goesOn()
	}

	// A destination that is gone, and a path that leads to another device of its size.
	b.lead("")
	b.stays(exit.Dest, b.link, command, "restart", b.name)
	b.waits(exit.Dest, b.link, command, "recover", b.name)
	b.lead(b.loop.path)
	b.recover()
	b.goesOn()
	b.lead(b.m.loop(b.m.file("other", heirSize).path, 512).path)
	b.stays(exit.Refused, "something else", command, "restart", b.name)
	b.lead(b.loop.path)

	// A destination that has grown is the same.
	if err := os.Truncate(b.backing.path, 64*mib); err != nil {
		t.Fatal(err)
	}
	b.m.run("losetup", "--set-capacity", b.loop.path)
	pid := b.status().PID
	b.m.run(command, "restart", "--all")
	if b.status().PID == pid {
		t.Error("the daemon of a grown destination was not replaced")
	}
	b.goesOn()
	b.clone.end(syscall.SIGKILL)
	b.recover()
	b.goesOn()

	// One whose backing file has lost its name to another is the same, or is refused.
	folder := filepath.Dir(b.backing.path)
	b.m.run("mount", "-t", "tmpfs", "tmpfs", folder)
	b.m.file("backing/dest", 64*mib)
	if o := b.m.try(command, "restart", b.name); o.code != 0 && !strings.Contains(o.stderr, "not interrupted") {
		t.Errorf("over another backing file restart says %q", o.stderr)
	}
	b.goesOn()
	b.clone.end(syscall.SIGKILL)
	o := b.m.try(command, "recover", b.name)
	b.m.run("umount", folder)
	if o.code != 0 {
		b.m.expectFailure(o, exit.Metadata, "waits for a daemon")
		b.recover()
	}
	b.goesOn()
	b.end()
}

// TestSuccessionSource: a source that was touched, or has changed, takes nothing from users: a daemon goes on, and if it is
// killed the next one serves what is hydrated, until the source is as it was.
func TestSuccessionSource(t *testing.T) {
	runs.On(t, "6.18")
	b := newHeirBench(t)
	b.add()
	b.use()
	b.hydrateFileSystem()
	st, err := os.Stat(b.source.path)
	if err != nil {
		t.Fatal(err)
	}
	flip := func() {
		f, err := os.OpenFile(b.source.path, os.O_RDWR, 0)
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
	setBack := func() { os.Chtimes(b.source.path, st.ModTime(), st.ModTime()) }
	for _, cause := range []struct {
		name        string
		brk, mended func()
	}{
		{"touched", func() { os.Chtimes(b.source.path, time.Now(), time.Now()) }, setBack},
		{"a byte of the sample changed", func() { flip(); setBack() }, func() { flip(); setBack() }},
		{"gone", func() { b.m.run("mv", b.source.path, b.source.path+".away") }, func() { b.m.run("mv", b.source.path+".away", b.source.path) }},
	} {
		cause.brk()
		o := b.m.try(command, "restart", b.name)
		t.Logf("%s: restart: exit status %d: %s", cause.name, o.code, o.stderr)
		if o.code != 0 && !strings.Contains(o.stderr, "not interrupted") {
			t.Errorf("%s: restart says %q", cause.name, o.stderr)
		}
		b.goesOn()
		b.clone.end(syscall.SIGKILL)
		b.recover()
		b.goesOn()
		if s := b.status(); s.State != "stalled" {
			t.Errorf("%s: recovered, the state is %s: %s", cause.name, s.State, s.Reason)
		}
		cause.mended()
		b.m.run(command, "resume", b.name)
		b.goesOn()
		if s := b.status(); s.State == "stalled" {
			t.Errorf("%s: mended, the state is %s: %s", cause.name, s.State, s.Reason)
		}
	}
	b.end()
}

// hydrateFileSystem hydrates what users need, and not all: a clone that is complete needs no source. Hydration goes from the
// beginning to the end.
func (b *heirBench) hydrateFileSystem() {
	b.m.Helper()
	b.setting("rate=4MiB/s")
	b.m.waitFor(hydrateLimit, "the file system to be hydrated", func() error {
		if n := b.status().Bytes.Remaining; n > (heirSize-heirFS)*3/4 {
			return fmt.Errorf("%d bytes are left", n)
		}
		return nil
	})
	b.setting("rate=16KiB/s")
	if b.status().State == "hydrated" {
		b.m.Fatal("it is complete: the test shows nothing")
	}
}

// hasPrevious says whether the previous release could be built.
func hasPrevious() bool {
	_, err := exec.LookPath(previous)
	return err == nil
}

// TestPreviousRelease: an upgrade from the previous release, and the way back, with users who notice nothing.
func TestPreviousRelease(t *testing.T) {
	runs.On(t, "6.12")
	if !hasPrevious() {
		t.Skip("scripts/device-tests could not build the previous release, whose commit this shallow clone lacks (git fetch --unshallow)")
	}
	b := newHeirBench(t)
	b.path = strings.TrimSpace(b.m.run(previous, append([]string{"add", b.name}, b.args...)...))
	b.use()
	for i, program := range []string{command, previous, command, previous, command} {
		if i == 3 { // a daemon that has died is recovered by the other release
			b.clone.end(syscall.SIGKILL)
			b.m.run(program, "recover", b.name)
		} else {
			b.m.run(program, "restart", b.name)
		}
		exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", b.status().PID))
		if err != nil || filepath.Base(exe) != program {
			t.Errorf("the daemon is %q, not %s: %v", exe, program, err)
		}
		b.goesOn()
	}
	b.lead("") // what the previous release finds out too late is found out before it leaves
	b.m.run(previous, "status", b.name)
	b.lead(b.loop.path)
	b.end()
}

// TestRestartWhileSourceHangs: a daemon with reads of a source that does not answer cannot be replaced, and says so in time;
// what is hydrated is served all along. If it is killed the next one serves that too.
func TestRestartWhileSourceHangs(t *testing.T) {
	runs.On(t, "7.3")
	m := newMachine(t)
	source, dest := m.faultyDisk("src", 16), m.nullBlk("dst", nullOptions{mib: 16})
	m.fillDisk(source.disk, original)
	m.fillDisk(dest, junk)
	w := newModel(16*mib, 64*kib)
	w.set(0, 16*mib, original)
	c := m.addClone(source.disk, dest, m.missing("meta"), "--region-size", "64KiB", "--no-hydration")
	v := m.open(c.path, os.O_RDWR)
	for off := int64(0); off < mib; off += 64 * kib {
		c.noError(w.write(v, m.buffer(64*1024), off, false))
	}
	reader := m.newUsers() // of what is hydrated
	var longest time.Duration
	buf := m.buffer(4096)
	reader.keepOn("reader", func() error {
		begin := time.Now()
		err := w.read(v, buf, 0)
		longest = max(longest, time.Since(begin))
		return err
	})
	restart := func(says string) {
		t.Helper()
		pid := c.status().PID
		o := m.try(command, "restart", c.name)
		if (o.code != exit.Timeout && o.code != exit.Source) || !strings.Contains(o.stderr, "not interrupted") || !strings.Contains(o.stderr, says) {
			t.Errorf("restart with a source that hangs: exit status %d: %s", o.code, o.stderr)
		}
		if now := c.status().PID; now != pid {
			t.Errorf("the daemon is process %d, not %d any more", now, pid)
		}
	}
	source.hold()
	restart("source") // nothing is in flight
	waiting := m.open(c.path, os.O_RDONLY)
	waited := make(chan error, 1)
	other := m.buffer(64 * 1024)
	go func() { waited <- w.read(waiting, other, 8*mib) }()
	restart("source")
	pid := c.status().PID // SIGTERM is no better
	c.noError(syscall.Kill(pid, syscall.SIGTERM))
	m.waitFor(standLimit, "SIGTERM to be refused", func() error {
		if log := m.readFile(filepath.Join(runDir, c.name+".log")); !strings.Contains(log, "SIGTERM is not obeyed") {
			return fmt.Errorf("the log has %d bytes", len(log))
		}
		return nil
	})
	if slices.Contains(daemons(), pid) {
		reader.stop()
		m.inTime(time.Second, "the longest read of what is hydrated", longest)
	} else {
		t.Error("the daemon has ended")
	}
	source.release()
	c.noError(<-waited)
	m.run(command, "restart", c.name)
	c.noError(w.read(v, other, 4*mib))

	source.hold()
	c.end(syscall.SIGKILL)
	read := make(chan error, 1)
	go func() { read <- w.read(v, buf, 0) }()
	c.recover()
	c.noError(<-read)
	if s := c.status(); s.State != "stalled" {
		t.Errorf("recovered without an answer of the source: %s: %s", s.State, s.Reason)
	}
	source.release()
	m.run(command, "resume", c.name)
	w.check(m, c.path)
	v.close()
	waiting.close()
	c.del()
}

// TestSuccessionWithoutRoom: with /run full, in bytes or in files, /var/lib read-only, and a process that gets no memory or no
// threads, a daemon is replaced or goes on, and a dead one's device waits at worst. Nothing but room is needed then.
func TestSuccessionWithoutRoom(t *testing.T) {
	runs.On(t, "6.18")
	b := newHeirBench(t)
	b.add()
	b.use()
	replaced := func(what string, args ...string) {
		t.Helper()
		pid := b.status().PID
		o := b.m.try(args[0], args[1:]...)
		t.Logf("%s: restart: exit status %d: %s", what, o.code, o.stderr)
		if now := b.status().PID; o.code == 0 == (now == pid) {
			t.Errorf("%s: restart has ended with %d, the daemon was process %d and is %d", what, o.code, pid, now)
		}
		b.goesOn()
	}
	recovered := func(what string, args ...string) (served bool) {
		t.Helper()
		b.clone.end(syscall.SIGKILL)
		o := b.m.try(args[0], args[1:]...)
		t.Logf("%s: recover: exit status %d: %s", what, o.code, o.stderr)
		if _, err := os.Stat(b.path); err != nil {
			t.Fatalf("%s: the device has gone: %v", what, err)
		}
		return o.code == 0
	}
	run := func(option string) { b.m.run("mount", "-o", "remount,"+option, "/run") }

	var fs syscall.Statfs_t
	b.noError(syscall.Statfs("/run", &fs))
	for what, option := range map[string]string{
		"/run full":          fmt.Sprintf("size=%d", (fs.Blocks-fs.Bfree)*uint64(fs.Bsize)),
		"/run full of files": fmt.Sprintf("nr_inodes=%d", fs.Files-fs.Ffree),
	} {
		run(option)
		replaced(what, command, "restart", b.name)
		served := recovered(what, command, "recover", b.name)
		run("size=50%,nr_inodes=100000")
		if !served {
			b.recover()
		}
		b.goesOn()
	}

	const lib = "/var/lib/ublk-clone"
	b.noError(os.MkdirAll(lib, 0o700))
	b.m.run("mount", "--bind", lib, lib)
	b.m.run("mount", "-o", "remount,bind,ro", lib)
	b.m.run(command, "restart", b.name)
	b.goesOn()
	b.clone.end(syscall.SIGKILL)
	b.recover()
	b.goesOn()
	b.m.run("umount", lib)

	for _, limit := range []string{"--as=400000000:400000000", "--nofile=5:5", "--as=1500000000:1500000000"}[:count(1, 3)] {
		replaced(limit, "prlimit", limit, command, "restart", b.name)
		if !recovered(limit, "prlimit", limit, command, "recover", b.name) {
			b.recover()
		}
		b.goesOn()
	}
	for _, most := range []int{9, 1, 14}[:count(1, 3)] {
		group := b.m.pidGroup(most)
		in := []string{"sh", "-c", "echo $$ >" + group + "/cgroup.procs && exec " + command + " \"$@\"", "sh"}
		what := fmt.Sprintf("%d threads", most)
		replaced(what, append(in, "restart", b.name)...)
		if !recovered(what, append(in, "recover", b.name)...) {
			b.recover()
		}
		b.goesOn()
	}
	b.m.run(command, "restart", b.name) // out of the group
	b.end()
}

// pidGroup makes a control group of so many processes and threads at most.
func (m *machine) pidGroup(most int) string {
	m.Helper()
	root := filepath.Join(m.dir, "cgroup")
	if err := os.Mkdir(root, 0o755); err == nil {
		m.run("mount", "-t", "cgroup2", "cgroup2", root)
		m.Cleanup(func() { m.run("umount", root) })
		m.writeFile(filepath.Join(root, "cgroup.subtree_control"), "+pids")
	}
	group := filepath.Join(root, fmt.Sprintf("most%d", most))
	if err := os.Mkdir(group, 0o755); err != nil {
		m.Fatal(err)
	}
	m.Cleanup(func() { m.waitFor(cleanLimit, "the group to be empty", func() error { return os.Remove(group) }) })
	m.writeFile(filepath.Join(group, "pids.max"), fmt.Sprint(most))
	return group
}
