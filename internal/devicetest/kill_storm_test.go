//go:build device

package devicetest

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/ublk-clone/ublk-clone/internal/exit"
	"github.com/ublk-clone/ublk-clone/internal/runs"
)

// What is killed leaves nothing for ever: after it the documented commands alone bring the clone up, with every
// acknowledged byte, or remove every trace of it.

// stormSize is the clone's: what is tried is how it comes and goes.
const stormSize = 2 * mib

// storm is a clone of files that are made by add, over and over.
type storm struct {
	*clone
	rng        *rand.Rand
	model      *model
	dest, meta *disk
	generation int
	took       map[string]time.Duration // by what command, when nobody killed it
	kills      map[string]int
}

// newStorm makes the source. Destination and metadata are missing.
func newStorm(t *testing.T) *storm {
	m := newMachine(t)
	m.dropLiveMaps()
	os.RemoveAll(recordDir)
	rng := m.random()
	source := m.nullBlk("src", nullOptions{mib: stormSize / mib})
	m.fillDisk(source, original)
	s := &storm{rng: rng, took: map[string]time.Duration{}, kills: map[string]int{}}
	s.dest, s.meta = &disk{m: m, size: stormSize}, &disk{m: m}
	folder := m.ext4Folder(64)
	s.dest.path, s.meta.path = filepath.Join(folder, "dest"), filepath.Join(folder, "meta")
	s.clone = m.newClone(source, s.dest, s.meta, "--no-hydration")
	s.anew()
	return s
}

// anew gives up the files of the clone, which is gone.
func (s *storm) anew() {
	s.m.Helper()
	for _, path := range []string{s.dest.path, s.meta.path} {
		if err := os.RemoveAll(path); err != nil {
			s.m.Fatal(err)
		}
	}
	s.model = newModel(stormSize, 4*kib)
	s.path = ""
	s.generation++
}

// patiently runs a documented command. While another command or a dying daemon is with the clone it is busy: who sees that
// tries again.
func (s *storm) patiently(args ...string) outcome {
	s.m.Helper()
	for deadline := time.Now().Add(standLimit); ; time.Sleep(100 * time.Millisecond) {
		o := s.m.try(command, args...)
		if o.code != exit.Busy || time.Now().After(deadline) {
			return o
		}
	}
}

// bringUp is the same add, and looks at every sector.
func (s *storm) bringUp() {
	s.m.Helper()
	args := append([]string{"add", s.name}, s.args...)
	out := s.m.must(s.patiently(args...), command, args...)
	s.path, _, _ = strings.Cut(strings.TrimSpace(out), " ")
	s.check()
}

// check looks at what is there of a clone that is up: its bytes, one device, one map, and nothing of those before it.
func (s *storm) check() {
	s.m.Helper()
	s.model.check(s.m, s.path)
	s.m.waitFor(cleanLimit, "one device, one live map and one clone's files", func() error {
		devices, _ := filepath.Glob("/dev/ublk[bc][0-9]*")
		files, _ := filepath.Glob(runDir + "/*")
		if kept, _ := filepath.Glob(liveMaps + "/*.map*"); len(devices) != 2 || len(kept) != 1 || len(daemons()) != 1 {
			return fmt.Errorf("%v, %v, processes %v", devices, kept, daemons())
		}
		for _, path := range files {
			if base := filepath.Base(path); !strings.HasPrefix(base, s.name+".") && !strings.HasSuffix(base, ".udev") || strings.HasSuffix(base, ".new") {
				return fmt.Errorf("%s is there", path)
			}
		}
		return nil
	})
}

// removeAll has the commands remove every trace of the clone.
func (s *storm) removeAll() {
	s.m.Helper()
	if o := s.patiently("del", s.name); o.code != 0 && o.code != exit.NoClone {
		s.m.Fatalf("del: exit status %d: %s", o.code, o.stderr)
	}
	s.m.run(command, "prune", "--force")
	s.nothingLeft()
	s.anew()
}

// nothingLeft looks for devices, processes, live maps and files: begun definitions, locks, sockets, logs.
func (s *storm) nothingLeft() {
	s.m.Helper()
	s.m.waitFor(cleanLimit, "all traces to go", func() error {
		left := devicesAndDaemons()
		kept, _ := filepath.Glob(liveMaps + "/*")
		begun, _ := filepath.Glob(s.dest.path + "?*")
		if left = append(append(left, kept...), begun...); len(left) > 0 {
			return errors.New(strings.Join(left, ", "))
		}
		return nil
	})
}

// TestAddKilledAtEachStep kills the daemon of an add behind each of its steps: then prune leaves nothing that is of no use,
// and the same add goes on, or prune --force removes all.
func TestAddKilledAtEachStep(t *testing.T) {
	runs.On(t, "6.12", "7.3")
	s := newStorm(t)
	step := 1
	for ; ; step += count(3, 1) {
		for round := range 2 {
			if count(0, 1) == 0 && (step/3+round)%2 == 0 {
				continue // one of them, in a short run
			}
			t.Setenv(faultEnv, "die "+strconv.Itoa(step))
			o := s.m.try(faulty, append([]string{"add", s.name}, s.args...)...)
			t.Setenv(faultEnv, "")
			if o.code == 0 {
				if step < 15 {
					t.Errorf("a start has more than %d steps", step-1)
				}
				t.Logf("%d steps", step-1)
				s.path = "up"
				s.removeAll()
				return
			}
			if left, _ := filepath.Glob(s.dest.path + "*"); len(left) > 1 || len(left) == 1 && s.m.size(left[0]) != stormSize {
				t.Fatalf("killed behind step %d it leaves %v", step, left)
			}
			if round == 1 {
				s.removeAll()
				continue
			}
			s.m.run(command, "prune")
			if left := devicesAndDaemons(); len(left) > 0 {
				t.Fatalf("killed behind step %d, pruned, there is %v", step, left)
			}
			s.bringUp()
			s.m.run(command, "del", s.name)
			s.nothingLeft()
			s.anew()
		}
	}
}

// size of a file.
func (m *machine) size(path string) int64 {
	m.Helper()
	info, err := os.Stat(path)
	if err != nil {
		m.Fatal(err)
	}
	return info.Size()
}

// TestKillStorm kills add, finish, restart and del at random moments: the command, its daemons, or all of them. SEED says
// which; with other seeds several guests share a count, and KILLS is this one's.
func TestKillStorm(t *testing.T) {
	runs.On(t, "7.3", runs.FourSeedsInFull)
	s := newStorm(t)
	kills := count(8, 500)
	if n, err := strconv.Atoi(os.Getenv("KILLS")); err == nil {
		kills = n
	}
	begin := time.Now()
	for n := 1; s.killed() < kills && !t.Failed(); n++ {
		s.round()
		if n%50 == 0 {
			t.Logf("%d kills after %v: %v", s.killed(), time.Since(begin).Round(time.Second), s.kills)
		}
	}
	s.removeAll()
	t.Logf("%d kills in %v, by command %v; %d generations of the clone", s.killed(), time.Since(begin).Round(time.Second), s.kills, s.generation)
}

// killed is how many commands were killed.
func (s *storm) killed() (n int) {
	for k := range maps.Values(s.kills) {
		n += k
	}
	return n
}

// round writes to the clone, kills one command and sees what the documented ones make of what is left.
func (s *storm) round() {
	s.m.Helper()
	verb := "add"
	if s.path != "" {
		s.write()
		verb = []string{"finish", "restart", "del"}[s.rng.IntN(3)]
	}
	if verb == "finish" {
		s.hydrateFast()
		s.waitHydrated()
	}
	s.m.Logf("%s", verb)
	finished := s.kill(verb)
	if verb == "finish" {
		finished = s.finishAgain() || finished
	}
	if finished {
		s.nothingLeft()
		s.model.check(s.m, s.dest.path)
		s.anew()
		return
	}
	if s.rng.IntN(3) == 0 {
		s.removeAll()
		return
	}
	s.bringUp()
}

// write writes here and there; nobody need flush it.
func (s *storm) write() {
	s.m.Helper()
	v, buf := s.m.open(s.path, os.O_RDWR), s.m.buffer(8*int(kib))
	defer v.close()
	for range 1 + s.rng.IntN(8) {
		length := sector * (1 + s.rng.Int64N(16))
		off := sector * s.rng.Int64N((stormSize-length)/sector)
		if err := s.model.write(v, buf[:length], off, false); err != nil {
			s.m.Fatal(err)
		}
	}
}

// kill runs a command and kills at a random moment of it the command, or all daemons, or both. finished says that it was a
// finish that came to its end.
func (s *storm) kill(verb string) (finished bool) {
	s.m.Helper()
	args := []string{verb, s.name}
	if verb == "add" {
		args = append(args, s.args...)
	}
	cmd := exec.Command(command, args...)
	begin := time.Now()
	if err := cmd.Start(); err != nil {
		s.m.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	limit := s.took[verb] + s.took[verb]/5
	if limit == 0 {
		limit = standLimit
	}
	select {
	case err := <-ended:
		s.took[verb] = max(time.Since(begin), 50*time.Millisecond)
		return verb == "finish" && err == nil
	case <-time.After(time.Duration(s.rng.Int64N(int64(limit)))):
	}
	victims := s.victims(cmd.Process.Pid)
	if verb == "add" && s.mayWedge() {
		victims = []int{cmd.Process.Pid}
	}
	for _, pid := range victims {
		_ = syscall.Kill(pid, syscall.SIGKILL) // it may have ended
	}
	if len(victims) > 0 {
		s.kills[verb]++
	}
	select {
	case err := <-ended:
		s.settle()
		return verb == "finish" && err == nil
	case <-time.After(standLimit):
		s.m.Fatalf("%s does not end after the death of %v", verb, victims)
	}
	return false
}

// settle waits for a daemon that was not killed to come to where it was going: up, or to its end.
func (s *storm) settle() {
	s.m.Helper()
	s.m.waitFor(standLimit, "the daemon to be up or gone", func() error {
		pids := daemons()
		if st := s.askedStatus(); len(pids) == 0 || st != nil && len(pids) == 1 && slices.Contains([]string{"paused", "hydrating", "hydrated"}, st.State) {
			return nil
		}
		return fmt.Errorf("processes %v", pids)
	})
}

// mayWedge says that the daemon of an add may be in START_DEV. Before 7.0 the kernel looks for partitions there, with the
// driver's lock: a device whose daemon is killed in that moment can be stopped by nobody until a reboot
// (docs/data-safety.md).
func (s *storm) mayWedge() bool {
	nodes, _ := filepath.Glob("/dev/ublkc[0-9]*")
	return len(nodes) > 0 && strings.HasPrefix(s.m.release(), "6.")
}

// victims are the command, all others, or all.
func (s *storm) victims(self int) []int {
	all := daemons()
	switch s.rng.IntN(3) {
	case 0:
		return all
	case 1:
		return slices.DeleteFunc(all, func(pid int) bool { return pid != self })
	}
	return slices.DeleteFunc(all, func(pid int) bool { return pid == self })
}

// finishAgain says whether a finish that was killed is done when it is asked for again. If its daemon died before there was
// no way back, the clone is there.
func (s *storm) finishAgain() bool {
	s.m.Helper()
	switch o := s.patiently("finish", s.name); o.code {
	case 0:
		return true
	case exit.NoClone:
		_, err := os.Stat(s.meta.path)
		return errors.Is(err, os.ErrNotExist)
	default:
		s.m.Logf("finish again: exit status %d: %s", o.code, o.stderr)
		return false
	}
}
