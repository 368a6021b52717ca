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

	"github.com/ublk-clone/ublk-clone/internal/devicetest/harness"
	"github.com/ublk-clone/ublk-clone/internal/exit"
	"github.com/ublk-clone/ublk-clone/internal/runs"
)

// What is killed leaves nothing for ever: after it the documented commands alone bring the clone
// up, with every acknowledged byte, or remove every trace of it.

// stormSize is the clone's: what is tried is how it comes and goes.
const stormSize = 2 * harness.MiB

// storm is a clone of files that are made by add, over and over.
type storm struct {
	*harness.Clone
	rng        *rand.Rand
	model      *harness.Model
	dest, meta *harness.Disk
	generation int
	took       map[string]time.Duration // by what command, when nobody killed it
	kills      map[string]int
}

// newStorm makes the source. Destination and metadata are missing.
func newStorm(t *testing.T) *storm {
	m := harness.New(t)
	m.DropLiveMaps()
	_ = os.RemoveAll(harness.RecordDir)
	rng := m.Random()
	source := m.NullBlk("src", harness.NullOptions{MiB: stormSize / harness.MiB})
	m.FillDisk(source, harness.Original)
	s := &storm{rng: rng, took: map[string]time.Duration{}, kills: map[string]int{}}
	s.dest, s.meta = &harness.Disk{M: &m.Devices, Size: stormSize}, &harness.Disk{M: &m.Devices}
	dir := m.Ext4Dir(64)
	s.dest.Path, s.meta.Path = filepath.Join(dir, "dest"), filepath.Join(dir, "meta")
	s.Clone = m.NewClone(source, s.dest, s.meta, "--no-hydration")
	s.anew()
	return s
}

// anew gives up the files of the clone, which is gone.
func (s *storm) anew() {
	s.M.Helper()
	for _, path := range []string{s.dest.Path, s.meta.Path} {
		if err := os.RemoveAll(path); err != nil {
			s.M.Fatal(err)
		}
	}
	s.model = harness.NewModel(stormSize, 4*harness.KiB)
	s.Path = ""
	s.generation++
}

// patiently runs a documented command. While another command or a dying daemon is with the clone it
// is busy: who sees that tries again.
func (s *storm) patiently(args ...string) harness.Outcome {
	s.M.Helper()
	for deadline := time.Now().Add(harness.StandLimit); ; time.Sleep(100 * time.Millisecond) {
		o := s.M.Try(harness.Command, args...)
		if o.Code != exit.Busy || time.Now().After(deadline) {
			return o
		}
	}
}

// bringUp is the same add, and looks at every sector.
func (s *storm) bringUp() {
	s.M.Helper()
	args := append([]string{"add", s.Name}, s.Args...)
	out := s.M.Must(s.patiently(args...), harness.Command, args...)
	s.Path, _, _ = strings.Cut(strings.TrimSpace(out), " ")
	s.check()
}

// check looks at what is there of a clone that is up: its bytes, one device, one map, and nothing
// of those before it.
func (s *storm) check() {
	s.M.Helper()
	s.model.Check(s.M, s.Path)
	s.M.WaitFor(harness.CleanLimit, "one device, one live map and one clone's files", func() error {
		devices, _ := filepath.Glob("/dev/ublk[bc][0-9]*")
		files, _ := filepath.Glob(harness.RunDir + "/*")
		if kept, _ := filepath.Glob(harness.LiveMaps + "/*.map*"); len(devices) != 2 || len(kept) != 1 || len(harness.Daemons()) != 1 {
			return fmt.Errorf("%v, %v, processes %v", devices, kept, harness.Daemons())
		}
		for _, path := range files {
			if base := filepath.Base(path); !strings.HasPrefix(base, s.Name+".") && !strings.HasSuffix(base, ".udev") || strings.HasSuffix(base, ".new") || strings.HasSuffix(base, ".begun") {
				return fmt.Errorf("%s is there", path)
			}
		}
		return nil
	})
}

// removeAll has the commands remove every trace of the clone.
func (s *storm) removeAll() {
	s.M.Helper()
	if o := s.patiently("del", s.Name); o.Code != 0 && o.Code != exit.NoClone {
		s.M.Fatalf("del: exit status %d: %s", o.Code, o.Stderr)
	}
	s.M.MustRun(harness.Command, "prune", "--force")
	s.nothingLeft()
	s.anew()
}

// nothingLeft looks for devices, processes, live maps and files: begun definitions, locks, sockets,
// logs.
func (s *storm) nothingLeft() {
	s.M.Helper()
	s.M.WaitFor(harness.CleanLimit, "all traces to go", func() error {
		left := devicesAndDaemons()
		kept, _ := filepath.Glob(harness.LiveMaps + "/*")
		begun, _ := filepath.Glob(s.dest.Path + "?*")
		if left = append(append(left, kept...), begun...); len(left) > 0 {
			return errors.New(strings.Join(left, ", "))
		}
		return nil
	})
}

// TestAddKilledAtEachStep kills the daemon of an add behind each of its steps: then prune leaves
// nothing that is of no use, and the same add goes on, or prune --force removes all.
func TestAddKilledAtEachStep(t *testing.T) {
	runs.On(t, "6.12", "7.3", runs.Layered, runs.Sampled)
	s := newStorm(t)
	step := 1
	for ; ; step += harness.Count(3, 1) {
		for round := range 2 {
			if harness.Count(0, 1) == 0 && (step/3+round)%2 == 0 {
				continue // one of them, in a short run
			}
			t.Setenv(faultEnv, "die "+strconv.Itoa(step))
			o := s.M.Try(faulty, append([]string{"add", s.Name}, s.Args...)...)
			t.Setenv(faultEnv, "")
			if o.Code == 0 {
				if step < 15 {
					t.Errorf("a start has more than %d steps", step-1)
				}
				t.Logf("%d steps", step-1)
				s.Path = "up"
				s.removeAll()
				return
			}
			if left, _ := filepath.Glob(s.dest.Path + "*"); len(left) > 1 || len(left) == 1 && size(s.M, left[0]) != stormSize {
				t.Fatalf("killed behind step %d it leaves %v", step, left)
			}
			if round == 1 {
				s.removeAll()
				continue
			}
			s.M.MustRun(harness.Command, "prune")
			if left := devicesAndDaemons(); len(left) > 0 {
				t.Fatalf("killed behind step %d, pruned, there is %v", step, left)
			}
			s.bringUp()
			s.M.MustRun(harness.Command, "del", s.Name)
			s.nothingLeft()
			s.anew()
		}
	}
}

// size of a file.
func size(m *harness.Machine, path string) int64 {
	m.Helper()
	info, err := os.Stat(path)
	if err != nil {
		m.Fatal(err)
	}
	return info.Size()
}

// TestKillStorm kills add, finish, restart and del at random moments: the command, its daemons, or
// all of them. SEED says which; with other seeds several guests share a count, and KILLS is this
// one's.
func TestKillStorm(t *testing.T) {
	runs.On(t, "7.3", runs.Layered, runs.FourSeedsInFull, runs.Sampled)
	s := newStorm(t)
	kills := harness.Count(8, 500)
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

// round writes to the clone, kills one command and sees what the documented ones make of what is
// left.
func (s *storm) round() {
	s.M.Helper()
	verb := "add"
	if s.Path != "" {
		s.write()
		verbs := []string{"finish", "restart", "del"}
		if runs.Layer() {
			verbs = verbs[1:] // a layer over a file cannot be finished
		}
		verb = verbs[s.rng.IntN(len(verbs))]
	}
	if verb == "finish" {
		s.HydrateFast()
		s.WaitHydrated()
	}
	s.M.Logf("%s", verb)
	finished := s.kill(verb)
	if verb == "finish" {
		finished = s.finishAgain() || finished
	}
	if finished {
		s.nothingLeft()
		s.model.Check(s.M, s.dest.Path)
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
	s.M.Helper()
	v, buf := s.M.Open(s.Path, os.O_RDWR), s.M.Buffer(8*int(harness.KiB))
	defer v.Close()
	for range 1 + s.rng.IntN(8) {
		length := harness.Sector * (1 + s.rng.Int64N(16))
		off := harness.Sector * s.rng.Int64N((stormSize-length)/harness.Sector)
		if err := s.model.Write(v, buf[:length], off, false); err != nil {
			s.M.Fatal(err)
		}
	}
}

// kill runs a command and kills at a random moment of it the command, or all daemons, or both.
// finished says that it was a finish that came to its end.
func (s *storm) kill(verb string) (finished bool) {
	s.M.Helper()
	args := []string{verb, s.Name}
	if verb == "add" {
		args = append(args, s.Args...)
	}
	cmd := exec.Command(harness.Command, args...)
	begin := time.Now()
	if err := cmd.Start(); err != nil {
		s.M.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	limit := s.took[verb] + s.took[verb]/5
	if limit == 0 {
		limit = harness.StandLimit
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
		s.arrive()
		return verb == "finish" && err == nil
	case <-time.After(harness.StandLimit):
		s.M.Fatalf("%s does not end after the death of %v", verb, victims)
	}
	return false
}

// arrive waits for a daemon that was not killed to come to where it was going: up, or to its end.
func (s *storm) arrive() {
	s.M.Helper()
	s.M.WaitFor(harness.StandLimit, "the daemon to be up or gone", func() error {
		pids := harness.Daemons()
		if st := s.AskedStatus(); len(pids) == 0 || st != nil && len(pids) == 1 && slices.Contains([]string{"paused", "hydrating", "hydrated"}, st.State) {
			return nil
		}
		return fmt.Errorf("processes %v", pids)
	})
}

// mayWedge says that the daemon of an add may be in START_DEV. Before 7.0 the kernel looks for
// partitions there, with the driver's lock: a device whose daemon is killed in that moment can be
// stopped by nobody until a reboot (docs/data-safety.md).
func (s *storm) mayWedge() bool {
	nodes, _ := filepath.Glob("/dev/ublkc[0-9]*")
	return len(nodes) > 0 && strings.HasPrefix(s.M.Release(), "6.")
}

// victims are the command, all others, or all.
func (s *storm) victims(self int) []int {
	all := harness.Daemons()
	switch s.rng.IntN(3) {
	case 0:
		return all
	case 1:
		return slices.DeleteFunc(all, func(pid int) bool { return pid != self })
	}
	return slices.DeleteFunc(all, func(pid int) bool { return pid == self })
}

// finishAgain says whether a finish that was killed is done when it is asked for again. If its
// daemon died before there was no way back, the clone is there.
func (s *storm) finishAgain() bool {
	s.M.Helper()
	switch o := s.patiently("finish", s.Name); o.Code {
	case 0:
		return true
	case exit.NoClone:
		_, err := os.Stat(s.meta.Path)
		return errors.Is(err, os.ErrNotExist)
	default:
		s.M.Logf("finish again: exit status %d: %s", o.Code, o.Stderr)
		return false
	}
}
