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
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ublk-clone/ublk-clone/internal/devicetest/harness"
	"github.com/ublk-clone/ublk-clone/internal/exit"
	"github.com/ublk-clone/ublk-clone/internal/runs"
)

// The lifecycle fuzzer does to one clone, in random order, what an operator, a crash and the
// machine do to it: commands, some of them killed half way, deaths of the daemon, restarts with
// this and with the previous program, and changes of source, destination and metadata. Users work
// on the device meanwhile. What they may see is the model:
//
//	always      a read returns the newest acknowledged write, or the source's first contents
//	sound       nothing is wrong with the surroundings: no request fails
//	troubled    a request may fail with EIO, and succeeds when it is tried again after the trouble
//	dead        requests wait
//	never       the device goes away; a command that must refuse does something; a command hangs
//
// SEED replays a run, as far as the moments of kills and requests allow. LIFECYCLE is how long it
// lasts.

const (
	lifecycleBytes = 16 * harness.MiB
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
	*harness.Clone
	t       *testing.T
	rng     *rand.Rand
	begin   time.Time
	user    *patientUser
	history []string
	counts  map[string]int

	source    *harness.Disk // a file
	reference string        // the same bytes
	meta      string        // the metadata's name in device-mapper
	metaUnder *harness.Disk
	dest      string           // the link to the destination that the clone was given
	disks     [2]*harness.Disk // the destination, and another one of the same size

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
	{"restart", 8, always, func(l *lifecycle) { l.replace(harness.Command, "restart") }},
	{"restart with the previous program", 4, soundAndReplaceable, func(l *lifecycle) { l.replace(previous, "restart") }},
	{"recover with the previous program", 3, deadAndReplaceable, func(l *lifecycle) { l.replace(previous, "recover") }},
	{"kill a command", 10, current, (*lifecycle).killCommand},
	{"del in use", 3, always, func(l *lifecycle) { l.refused("del", exit.Busy, exit.NoAnswer) }},
	{"finish in use", 3, always, func(l *lifecycle) { l.refused("finish", exit.Refused, exit.Busy, exit.NoAnswer) }},
	{"look", 6, always, (*lifecycle).look},
	{"pause or resume", 4, aliveAndSound, func(l *lifecycle) { l.M.MustRun(harness.Command, l.pick("pause", "resume"), l.Name) }},
	{"set", 4, aliveAndSound, func(l *lifecycle) {
		l.Setting(l.pick("rate=none", "rate=64KiB/s", "rate=1MiB/s", "read-through=on", "read-through=off"))
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
	runs.On(t, "7.3", runs.OwnGuestInFull, runs.Sampled)
	m := harness.New(t)
	m.Kernel.Expect("I/O error") // of the metadata
	m.DropLiveMaps()
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
		l.replace(harness.Command, "restart")
	}
	l.checkAll()
	l.user.stop()
	l.Setting("rate=none")
	l.M.MustRun(harness.Command, "resume", l.Name)
	l.WaitHydrated()
	l.user.model.Check(m, l.Path)
	m.MustRun(harness.Command, "finish", l.Name)
	l.Path = ""
	l.user.model.Check(m, l.disks[0].Path)
	t.Logf("seed %d: %v: %v; %d requests, %d of them tried again", harness.Seed(), time.Since(l.begin).Round(time.Second), l.counts,
		l.user.model.Answered(), l.user.retries.Load())
}

func newLifecycle(t *testing.T, m *harness.Machine) *lifecycle {
	l := &lifecycle{t: t, rng: m.Random(), begin: time.Now(), counts: map[string]int{}, meta: "meta", dest: filepath.Join(m.Dir, "dest")}
	for i, role := range []string{"dst", "other"} {
		l.disks[i] = m.NullBlk(role, harness.NullOptions{MiB: lifecycleBytes / harness.MiB, Discard: true})
		m.FillDisk(l.disks[i], harness.Junk)
	}
	if err := os.Symlink(l.disks[0].Path, l.dest); err != nil {
		t.Fatal(err)
	}
	l.metaUnder = m.NullBlk("meta", harness.NullOptions{MiB: 1})
	meta := m.Linear(l.meta, l.metaUnder, harness.MiB)
	dir := m.Ext4Dir(64)
	l.source = &harness.Disk{M: &m.Devices, Path: filepath.Join(dir, "source"), Size: lifecycleBytes}
	l.reference = filepath.Join(dir, "reference")
	m.MustRun("truncate", "-s", fmt.Sprint(lifecycleBytes), l.source.Path)
	m.FillDisk(l.source, harness.Original)
	m.MustRun("cp", l.source.Path, l.reference)
	l.Clone = m.NewClone(l.source, &harness.Disk{Path: l.dest}, meta, "--rate", "64KiB/s", "--min-rate", "none")
	l.Add()
	l.user = newPatientUser(m, lifecycleBytes)
	l.user.start(l.rng, l.Path)
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
	if _, err := os.Stat(l.Path); err != nil {
		l.t.Fatalf("the device has gone: %v", err)
	}
	if soundAndAlive(l) {
		l.M.WaitFor(progressLimit, "users to go on", l.user.model.Moved(5))
	}
	l.some(300 * time.Millisecond)
	l.M.Kernel.Check(l.t)
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
func (l *lifecycle) said(o harness.Outcome) harness.Outcome {
	l.history[len(l.history)-1] += fmt.Sprintf(" [%d after %v] %s", o.Code, o.Took.Round(time.Millisecond), strings.TrimSpace(o.Stderr))
	return o
}

func (l *lifecycle) tell() {
	if l.t.Failed() {
		l.t.Logf("seed %d; what was done, the last last:\n%s", harness.Seed(), strings.Join(l.history, "\n"))
	}
}

func (l *lifecycle) die() {
	l.End(syscall.SIGKILL)
	l.dead = true
}

// findOut sees whether a daemon lives, after a command that may have failed or been killed.
func (l *lifecycle) findOut() {
	l.M.WaitFor(healLimit, "the clone to be dead or served", func() error {
		s := l.Status()
		l.dead = s.State == "dead"
		if !l.dead && slices.Contains([]string{"starting", "recovering", "stopping", "silent"}, s.State) {
			return errors.New(s.State + ": " + s.Reason)
		}
		return nil
	})
}

// bringBack must succeed if nothing is wrong.
func (l *lifecycle) bringBack() { l.replace(harness.Command, "recover") }

func (l *lifecycle) addAgain() {
	if o := l.said(l.M.TryFor(healLimit, harness.Command, append([]string{"add", l.Name}, l.Args...)...)); o.Code != 0 && sound(l) {
		l.t.Fatalf("the same add: exit status %d: %s", o.Code, o.Stderr)
	}
	l.findOut()
}

// replace has a program restart or recover the clone. If anything is wrong it may be refused, and
// then a daemon that served still does.
func (l *lifecycle) replace(program, verb string) {
	was := l.dead
	o := l.said(l.M.TryFor(healLimit, program, verb, l.Name))
	if o.Code != 0 && sound(l) {
		l.t.Fatalf("%s %s: exit status %d: %s", program, verb, o.Code, o.Stderr)
	}
	l.findOut()
	if l.dead && !was {
		l.t.Fatalf("%s %s has ended a daemon that served, and there is none now: exit status %d: %s", program, verb, o.Code, o.Stderr)
	}
	if o.Code == 0 && (verb == "restart" || was) {
		l.previous = program == previous
	}
}

// killCommand kills a command at a random moment. What it has begun may go on or not; the clone is
// served, or waits.
func (l *lifecycle) killCommand() {
	words := strings.Fields(l.pick("restart NAME", "recover NAME", "resume NAME", "status NAME", "set NAME rate=1MiB/s", "del NAME --wait 20s", "prune", "wait NAME"))
	for i := range words {
		words[i] = strings.Replace(words[i], "NAME", l.Name, 1)
	}
	cmd := exec.Command(harness.Command, words...)
	if err := cmd.Start(); err != nil {
		l.t.Fatal(err)
	}
	l.some(1500 * time.Millisecond)
	harness.EndAnyway(cmd)
	l.findOut()
}

// refused is a command that must not do anything while the device is in use.
func (l *lifecycle) refused(verb string, codes ...int) {
	o := l.said(l.M.TryFor(healLimit, harness.Command, verb, l.Name))
	if !slices.Contains(codes, o.Code) && sound(l) || o.Code == 0 {
		l.t.Fatalf("%s of a clone in use: exit status %d: %s%s", verb, o.Code, o.Stdout, o.Stderr)
	}
	l.findOut()
}

// look has the commands that only tell.
func (l *lifecycle) look() {
	for _, words := range [][]string{{"status", l.Name}, {"list"}, {"status", l.Name, "-o", "dm"}} {
		o := l.M.TryFor(harness.StandLimit, harness.Command, words...)
		// The daemon of a recovery whose command was killed has no figures for a line of dm-clone
		// yet.
		early := o.Code == 13 && strings.Contains(o.Stderr, "recovering")
		if o.Code != 0 && !early && sound(l) && !l.dead {
			l.t.Fatalf("%v: exit status %d: %s", words, o.Code, o.Stderr)
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
	return l.source.Path
}

func (l *lifecycle) sourceAway() string { return l.source.Path + ".away" }

// restoreSource makes the source what it was, in the same file.
func (l *lifecycle) restoreSource() { l.M.MustRun("cp", l.reference, l.sourceFile()) }

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
	l.trouble(true, func() { l.must(os.Rename(away, l.source.Path)) })
	l.must(os.Rename(l.source.Path, away))
}

func (l *lifecycle) failMetadata() {
	l.trouble(true, func() { l.M.Works(l.meta, harness.MiB, l.metaUnder) })
	l.M.Fails(l.meta, harness.MiB)
}

// exchangeDest leads the destination's name to another disk, which a daemon that serves does not
// notice.
func (l *lifecycle) exchangeDest() {
	lead := func(d *harness.Disk) {
		l.must(errors.Join(os.Remove(l.dest), os.Symlink(d.Path, l.dest)))
	}
	l.trouble(false, func() {
		lead(l.disks[0])
		newModelOf(lifecycleBytes, harness.Junk).Check(l.M, l.disks[1].Path) // nothing was written to it
	})
	lead(l.disks[1])
}

// fillRun leaves no room where the daemons have their files.
func (l *lifecycle) fillRun() {
	var st unix.Statfs_t
	l.must(unix.Statfs("/run", &st))
	size := fmt.Sprintf("remount,size=%d", st.Blocks*uint64(st.Bsize))
	l.trouble(false, func() { l.M.MustRun("mount", "-o", size, "/run") })
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
		l.said(l.M.TryFor(healLimit, harness.Command, "resume", l.Name))
	}
	l.M.WaitFor(healLimit, "the clone to be well again", func() error {
		s := l.Status()
		if s.Mode != "rw" || slices.Contains([]string{"stalled", "failed", "dead", "silent"}, s.State) {
			if l.resume {
				l.said(l.M.TryFor(healLimit, harness.Command, "resume", l.Name))
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
	l.user.model.Check(l.M, l.Path)
	l.user.start(l.rng, l.Path)
}

// newModelOf is a model of a disk that holds one version.
func newModelOf(size int64, v harness.Version) *harness.Model {
	w := harness.NewModel(size, 4*harness.KiB)
	w.Set(0, size, v)
	return w
}
