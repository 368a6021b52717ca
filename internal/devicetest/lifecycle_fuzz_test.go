//go:build device

package devicetest

import (
	"cmp"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ublk-clone/ublk-clone/internal/exit"
	"github.com/ublk-clone/ublk-clone/internal/runs"
)

// The lifecycle fuzzer does to one clone, in random order, what an operator, a crash and the machine do to it: commands, some
// of them killed half way, deaths of the daemon, restarts with this and with the previous program, and changes of source,
// destination and metadata. Users work on the device meanwhile. What they may see is the model:
//
//	always      a read returns the newest acknowledged write, or the source's first contents
//	sound       nothing is wrong with the surroundings: no request fails
//	troubled    a request may fail with EIO, and succeeds when it is tried again after the trouble
//	dead        requests wait
//	never       the device goes away; a command that must refuse does something; a command hangs
//
// SEED replays a run, as far as the moments of kills and requests allow. LIFECYCLE is how long it lasts.

const (
	lifecycleBytes = 16 * mib
	healLimit      = 2 * time.Minute
)

func lifecycleTime(t *testing.T) time.Duration {
	text := cmp.Or(os.Getenv("LIFECYCLE"), map[bool]string{false: "2m", true: "40m"}[os.Getenv("FULL") == "1"])
	d, err := time.ParseDuration(text)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// lifecycle is one run.
type lifecycle struct {
	*clone
	t       *testing.T
	rng     *rand.Rand
	begin   time.Time
	user    *patientUser
	history []string
	counts  map[string]int

	source    *disk  // a file
	reference string // the same bytes
	meta      string // the metadata's name in device-mapper
	metaUnder *disk
	dest      string   // the link to the destination that the clone was given
	disks     [2]*disk // the destination, and another one of the same size

	dead     bool     // the daemon is
	previous bool     // it is one of the previous program
	undo     []func() // ends the trouble there is, in reverse
	resume   bool     // what was troubled has to be taken back by resume
}

// lifecycleActions are what can happen, how often beside the others, and when.
var lifecycleActions = []struct {
	name   string
	weight int
	may    func(*lifecycle) bool
	do     func(*lifecycle)
}{
	{"kill", 12, alive, (*lifecycle).die},
	{"recover", 14, died, (*lifecycle).bringBack},
	{"add again", 4, always, (*lifecycle).addAgain},
	{"restart", 8, always, func(l *lifecycle) { l.replace(command, "restart") }},
	{"restart with the previous program", 4, soundAndReplaceable, func(l *lifecycle) { l.replace(previous, "restart") }},
	{"recover with the previous program", 3, deadAndReplaceable, func(l *lifecycle) { l.replace(previous, "recover") }},
	{"kill a command", 10, current, (*lifecycle).killCommand},
	{"del in use", 3, always, func(l *lifecycle) { l.refused("del", exit.Busy, exit.NoAnswer) }},
	{"finish in use", 3, always, func(l *lifecycle) { l.refused("finish", exit.Refused, exit.Busy, exit.NoAnswer) }},
	{"look", 6, always, (*lifecycle).look},
	{"pause or resume", 4, aliveAndSound, func(l *lifecycle) { l.m.run(command, l.pick("pause", "resume"), l.name) }},
	{"set", 4, aliveAndSound, func(l *lifecycle) {
		l.setting(l.pick("rate=none", "rate=64KiB/s", "rate=1MiB/s", "read-through=on", "read-through=off"))
	}},
	{"touch the source", 3, current, (*lifecycle).touchSource},
	{"rewrite the source", 3, current, (*lifecycle).rewriteSource},
	{"rename the source", 3, current, (*lifecycle).renameSource},
	{"fail the metadata", 3, current, (*lifecycle).failMetadata},
	{"exchange the destination", 3, current, (*lifecycle).exchangeDest},
	{"fill /run", 3, current, (*lifecycle).fillRun},
	{"heal", 14, troubled, (*lifecycle).heal},
	{"check", 4, soundAndAlive, (*lifecycle).checkAll},
}

func always(*lifecycle) bool                { return true }
func alive(l *lifecycle) bool               { return !l.dead }
func died(l *lifecycle) bool                { return l.dead }
func troubled(l *lifecycle) bool            { return len(l.undo) > 0 }
func sound(l *lifecycle) bool               { return len(l.undo) == 0 }
func current(l *lifecycle) bool             { return !l.previous }
func soundAndReplaceable(l *lifecycle) bool { return sound(l) && hasPrevious() }
func deadAndReplaceable(l *lifecycle) bool  { return soundAndReplaceable(l) && l.dead }
func soundAndAlive(l *lifecycle) bool       { return sound(l) && !l.dead }
func aliveAndSound(l *lifecycle) bool       { return soundAndAlive(l) }

// TestLifecycle: see above.
func TestLifecycle(t *testing.T) {
	runs.On(t, "7.3", runs.OwnGuestInFull)
	m := newMachine(t)
	m.kernel.expect("I/O error") // of the metadata
	m.dropLiveMaps()
	l := newLifecycle(t, m)
	m.Cleanup(l.tell)
	for end := l.begin.Add(lifecycleTime(t)); time.Now().Before(end) && !t.Failed(); {
		l.act()
	}
	if t.Failed() {
		t.FailNow()
	}
	l.note("end")
	l.heal()
	if l.previous {
		l.replace(command, "restart")
	}
	l.checkAll()
	l.user.stop()
	l.setting("rate=none")
	l.m.run(command, "resume", l.name)
	l.waitHydrated()
	l.user.model.check(m, l.path)
	m.run(command, "finish", l.name)
	l.path = ""
	l.user.model.check(m, l.disks[0].path)
	t.Logf("seed %d: %v: %v; %d requests, %d of them tried again", seed(), time.Since(l.begin).Round(time.Second), l.counts,
		l.user.model.answered(), l.user.retries.Load())
}

func newLifecycle(t *testing.T, m *machine) *lifecycle {
	l := &lifecycle{t: t, rng: m.random(), begin: time.Now(), counts: map[string]int{}, meta: "meta", dest: filepath.Join(m.dir, "dest")}
	for i, role := range []string{"dst", "other"} {
		l.disks[i] = m.nullBlk(role, nullOptions{mib: lifecycleBytes / mib, discard: true})
		m.fillDisk(l.disks[i], junk)
	}
	if err := os.Symlink(l.disks[0].path, l.dest); err != nil {
		t.Fatal(err)
	}
	l.metaUnder = m.nullBlk("meta", nullOptions{mib: 1})
	meta := m.linear(l.meta, l.metaUnder, mib)
	folder := m.ext4Folder(64)
	l.source = &disk{m: m, path: filepath.Join(folder, "source"), size: lifecycleBytes}
	l.reference = filepath.Join(folder, "reference")
	m.run("truncate", "-s", fmt.Sprint(lifecycleBytes), l.source.path)
	m.fillDisk(l.source, original)
	m.run("cp", l.source.path, l.reference)
	l.clone = m.newClone(l.source, &disk{path: l.dest}, meta, "--rate", "64KiB/s", "--min-rate", "none")
	l.add()
	l.user = newPatientUser(m, lifecycleBytes)
	l.user.start(l.rng, l.path)
	return l
}

// act does one thing, and looks at what must hold behind each.
func (l *lifecycle) act() {
	total := 0
	for _, a := range lifecycleActions {
		if a.may(l) {
			total += a.weight
		}
	}
	pick := l.rng.IntN(total)
	for _, a := range lifecycleActions {
		if !a.may(l) {
			continue
		}
		if pick -= a.weight; pick < 0 {
			l.note(a.name)
			a.do(l)
			break
		}
	}
	if _, err := os.Stat(l.path); err != nil {
		l.t.Fatalf("the device has gone: %v", err)
	}
	if soundAndAlive(l) {
		l.m.waitFor(progressLimit, "users to go on", l.user.model.moved(5))
	}
	l.some(300 * time.Millisecond)
	l.m.kernel.check(l.t)
}

func (l *lifecycle) some(limit time.Duration) { time.Sleep(time.Duration(l.rng.Int64N(int64(limit)))) }

func (l *lifecycle) pick(words ...string) string {
	word := words[l.rng.IntN(len(words))]
	l.history[len(l.history)-1] += " " + word
	return word
}

func (l *lifecycle) note(action string) {
	l.counts[action]++
	l.history = append(l.history, fmt.Sprintf("%8v  %s", time.Since(l.begin).Round(time.Millisecond), action))
	l.history = l.history[max(0, len(l.history)-historyShown):]
}

// said adds what a command has answered to the history.
func (l *lifecycle) said(o outcome) outcome {
	l.history[len(l.history)-1] += fmt.Sprintf(" [%d after %v] %s", o.code, o.took.Round(time.Millisecond), strings.TrimSpace(o.stderr))
	return o
}

func (l *lifecycle) tell() {
	if l.t.Failed() {
		l.t.Logf("seed %d; what was done, the last last:\n%s", seed(), strings.Join(l.history, "\n"))
	}
}

func (l *lifecycle) die() {
	l.end(syscall.SIGKILL)
	l.dead = true
}

// findOut sees whether a daemon lives, after a command that may have failed or been killed.
func (l *lifecycle) findOut() {
	l.m.waitFor(healLimit, "the clone to be dead or served", func() error {
		s := l.status()
		l.dead = s.State == "dead"
		if !l.dead && slices.Contains([]string{"starting", "recovering", "stopping", "silent"}, s.State) {
			return errors.New(s.State + ": " + s.Reason)
		}
		return nil
	})
}

// bringBack must succeed if nothing is wrong.
func (l *lifecycle) bringBack() { l.replace(command, "recover") }

func (l *lifecycle) addAgain() {
	if o := l.said(l.m.tryFor(healLimit, command, append([]string{"add", l.name}, l.args...)...)); o.code != 0 && sound(l) {
		l.t.Fatalf("the same add: exit status %d: %s", o.code, o.stderr)
	}
	l.findOut()
}

// replace has a program restart or recover the clone. If anything is wrong it may be refused, and then a daemon that served
// still does.
func (l *lifecycle) replace(program, verb string) {
	was := l.dead
	o := l.said(l.m.tryFor(healLimit, program, verb, l.name))
	if o.code != 0 && sound(l) {
		l.t.Fatalf("%s %s: exit status %d: %s", program, verb, o.code, o.stderr)
	}
	l.findOut()
	if l.dead && !was {
		l.t.Fatalf("%s %s has ended a daemon that served, and there is none now: exit status %d: %s", program, verb, o.code, o.stderr)
	}
	if o.code == 0 && (verb == "restart" || was) {
		l.previous = program == previous
	}
}

// killCommand kills a command at a random moment. What it has begun may go on or not; the clone is served, or waits.
func (l *lifecycle) killCommand() {
	words := strings.Fields(l.pick("restart NAME", "recover NAME", "resume NAME", "status NAME", "set NAME rate=1MiB/s", "del NAME --wait 20s", "prune", "wait NAME"))
	for i := range words {
		words[i] = strings.Replace(words[i], "NAME", l.name, 1)
	}
	cmd := exec.Command(command, words...)
	if err := cmd.Start(); err != nil {
		l.t.Fatal(err)
	}
	l.some(1500 * time.Millisecond)
	cmd.Process.Kill()
	cmd.Wait()
	l.findOut()
}

// refused is a command that must not do anything while the device is in use.
func (l *lifecycle) refused(verb string, codes ...int) {
	o := l.said(l.m.tryFor(healLimit, command, verb, l.name))
	if !slices.Contains(codes, o.code) && sound(l) || o.code == 0 {
		l.t.Fatalf("%s of a clone in use: exit status %d: %s%s", verb, o.code, o.stdout, o.stderr)
	}
	l.findOut()
}

// look has the commands that only tell.
func (l *lifecycle) look() {
	for _, words := range [][]string{{"status", l.name}, {"list"}, {"status", l.name, "-o", "dm"}} {
		if o := l.m.tryFor(standLimit, command, words...); o.code != 0 && sound(l) && !l.dead {
			l.t.Fatalf("%v: exit status %d: %s", words, o.code, o.stderr)
		}
	}
}

// trouble begins one, which undo ends.
func (l *lifecycle) trouble(resume bool, undo func()) {
	l.user.setSound(false)
	l.undo = append(l.undo, undo)
	l.resume = l.resume || resume
}

func (l *lifecycle) must(err error) {
	if err != nil {
		l.t.Fatal(err)
	}
}

// sourceFile is where the source's file is by now.
func (l *lifecycle) sourceFile() string {
	if _, err := os.Stat(l.sourceAway()); err == nil {
		return l.sourceAway()
	}
	return l.source.path
}

func (l *lifecycle) sourceAway() string { return l.source.path + ".away" }

// restoreSource makes the source what it was, in the same file.
func (l *lifecycle) restoreSource() { l.m.run("cp", l.reference, l.sourceFile()) }

func (l *lifecycle) touchSource() {
	l.trouble(true, func() {})
	l.must(os.Chtimes(l.sourceFile(), time.Now(), time.Now()))
}

// rewriteSource is what cp does to an image: for a while it is short.
func (l *lifecycle) rewriteSource() {
	l.trouble(true, l.restoreSource)
	l.must(os.Truncate(l.sourceFile(), l.rng.Int64N(lifecycleBytes)))
	l.some(2 * time.Second)
	if l.rng.IntN(2) == 0 {
		l.must(os.Truncate(l.sourceFile(), lifecycleBytes))
	}
}

func (l *lifecycle) renameSource() {
	away := l.sourceAway()
	if _, err := os.Stat(away); err == nil {
		return
	}
	l.trouble(true, func() { l.must(os.Rename(away, l.source.path)) })
	l.must(os.Rename(l.source.path, away))
}

func (l *lifecycle) failMetadata() {
	l.trouble(true, func() { l.m.works(l.meta, mib, l.metaUnder) })
	l.m.fails(l.meta, mib)
}

// exchangeDest leads the destination's name to another disk, which a daemon that serves does not notice.
func (l *lifecycle) exchangeDest() {
	lead := func(d *disk) {
		l.must(errors.Join(os.Remove(l.dest), os.Symlink(d.path, l.dest)))
	}
	l.trouble(false, func() {
		lead(l.disks[0])
		newModelOf(lifecycleBytes, junk).check(l.m, l.disks[1].path) // nothing was written to it
	})
	lead(l.disks[1])
}

// fillRun leaves no room where the daemons have their files.
func (l *lifecycle) fillRun() {
	var st unix.Statfs_t
	l.must(unix.Statfs("/run", &st))
	size := fmt.Sprintf("remount,size=%d", st.Blocks*uint64(st.Bsize))
	l.trouble(false, func() { l.m.run("mount", "-o", size, "/run") })
	var err error
	for more := range uint64(20) { // what is less than in use by then is refused
		l.must(unix.Statfs("/run", &st))
		used := max(1, st.Blocks-st.Bfree) + more
		if err = unix.Mount("none", "/run", "tmpfs", unix.MS_REMOUNT, fmt.Sprintf("size=%d", used*uint64(st.Bsize))); err == nil {
			return
		}
	}
	l.t.Fatalf("make /run smaller: %v", err)
}

// heal ends all trouble. Then documented commands alone bring everything back.
func (l *lifecycle) heal() {
	for _, undo := range slices.Backward(l.undo) {
		undo()
	}
	l.undo = nil
	if l.dead {
		l.bringBack()
	}
	if l.resume {
		l.said(l.m.tryFor(healLimit, command, "resume", l.name))
	}
	l.m.waitFor(healLimit, "the clone to be well again", func() error {
		s := l.status()
		if s.Mode != "rw" || slices.Contains([]string{"stalled", "failed", "dead", "silent"}, s.State) {
			if l.resume {
				l.said(l.m.tryFor(healLimit, command, "resume", l.name))
			}
			return fmt.Errorf("mode %s, %s: %s", s.Mode, s.State, s.Reason)
		}
		return nil
	})
	l.resume = false
	l.user.setSound(true)
}

// checkAll compares everything, with nobody at work.
func (l *lifecycle) checkAll() {
	l.user.stop()
	l.user.model.check(l.m, l.path)
	l.user.start(l.rng, l.path)
}

// newModelOf is a model of a disk that holds one version.
func newModelOf(size int64, v version) *model {
	w := newModel(size, 4*kib)
	w.set(0, size, v)
	return w
}

// patientUser makes random requests, and makes one that has failed again until it succeeds: so the model always knows what a
// sector holds. A request may only fail while its surroundings are not sound.
type patientUser struct {
	m       *machine
	model   *model
	quit    chan struct{}
	group   sync.WaitGroup
	retries atomic.Int64

	mu      sync.Mutex
	isSound bool
	since   time.Time // when it became so
}

// retryPause is between two tries.
const retryPause = 200 * time.Millisecond

func newPatientUser(m *machine, size int64) *patientUser {
	return &patientUser{m: m, model: newModel(size, 4*kib), isSound: true, since: time.Now()}
}

func (u *patientUser) setSound(is bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.isSound, u.since = is, time.Now()
}

// soundSince says whether the surroundings were sound all the time since.
func (u *patientUser) soundSince(then time.Time) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.isSound && u.since.Before(then)
}

func (u *patientUser) start(rng *rand.Rand, path string) {
	u.quit = make(chan struct{})
	for range 3 {
		v := u.m.open(path, os.O_RDWR)
		buf, free := u.m.scratch(ioSize)
		own := rand.New(rand.NewPCG(rng.Uint64(), rng.Uint64()))
		u.group.Go(func() {
			defer v.f.Close()
			defer free()
			for u.request(own, v, buf) {
				select {
				case <-u.quit:
					return
				case <-time.After(soakRest):
				}
			}
		})
	}
}

// stop waits for the requests at work, which must succeed by themselves.
func (u *patientUser) stop() {
	close(u.quit)
	u.group.Wait()
	if u.m.Failed() {
		u.m.FailNow()
	}
}

// request makes one request until it succeeds; false: it has failed for good.
func (u *patientUser) request(rng *rand.Rand, v *volume, buf []byte) bool {
	w := u.model
	off, length := w.place(rng, 512)
	kind := rng.IntN(10)
	w.enter(off, length)
	defer w.leave(off, length)
	ver, b := w.newVersion(), buf[:length]
	for {
		begin := time.Now()
		var err error
		switch {
		case kind < 4:
			if err = v.read(b, off); err == nil {
				if err = w.compare(b, off); err != nil {
					u.m.Errorf("a wrong read: %v", err)
					return false
				}
			}
		case kind < 8:
			fill(b, off, ver)
			if err = v.write(b, off); err == nil {
				w.set(off, off+length, ver)
			}
		case kind == 8:
			if err = v.zero(off, length); err == nil {
				w.set(off, off+length, zeros)
			}
		default:
			err = v.flush()
		}
		if err == nil {
			w.took(time.Since(begin))
			return true
		}
		if !errors.Is(err, unix.EIO) || u.soundSince(begin) {
			u.m.Errorf("a request of kind %d at %d, %d bytes: %v", kind, off, length, err)
			return false
		}
		u.retries.Add(1)
		time.Sleep(retryPause)
	}
}
