//go:build device

package devicetest

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/ublk-clone/ublk-clone/internal/devicetest/harness"
	"github.com/ublk-clone/ublk-clone/internal/exit"
	"github.com/ublk-clone/ublk-clone/internal/runs"
)

// finding is what the tests read of `doctor -o json`.
type finding struct {
	Check  string `json:"check"`
	Level  string `json:"level"`
	Text   string `json:"text"`
	Action string `json:"action"`
}

// bad says that it is one of those that doctor names.
func (f finding) bad() bool { return f.Level == "problem" || f.Level == "warning" }

// doctor runs it, behind another command if there is one, and gives what it names.
func doctor(m *harness.Machine, behind ...string) (named []finding, code int) {
	m.Helper()
	program, err := exec.LookPath(harness.Command)
	if err != nil {
		m.Fatal(err)
	}
	args := append(slices.Clone(behind), program, "doctor", "-o", "json")
	o := m.Try(args[0], args[1:]...)
	var report struct {
		Schema string    `json:"schema"`
		Checks []finding `json:"checks"`
	}
	if err := json.Unmarshal([]byte(o.Stdout), &report); err != nil || report.Schema != "ublk-clone/v1" || len(report.Checks) < 10 {
		m.Fatalf("doctor: exit status %d, %v: %s%s", o.Code, err, o.Stdout, o.Stderr)
	}
	for _, f := range report.Checks {
		if f.bad() {
			named = append(named, f)
		}
		if f.bad() && (f.Text == "" || f.Action == "") {
			m.Errorf("doctor names %+v without a next step", f)
		}
	}
	return named, o.Code
}

// planted is a problem that a test makes.
type planted struct {
	name   string
	plant  func()
	heal   func()
	behind []string // doctor runs behind this command, instead of or besides plant
	checks []string // that name it, as "check level"
	code   int
	says   string // in the text or the next step
}

// TestDoctor: each of the problems, planted alone, is named by its check and no other, with the
// exit code and a next step; healed, it is not named any more.
func TestDoctor(t *testing.T) {
	runs.On(t, "6.18", runs.Sampled)
	m := harness.New(t)
	_ = os.RemoveAll(harness.RecordDir)
	before, code := doctor(m)
	t.Logf("before: %+v", before)
	if code != exit.OK {
		t.Fatalf("doctor finds problems before one is planted: exit status %d, %+v", code, before)
	}
	for i, p := range slices.Concat(plantedInKernel(m), plantedLimits(m), plantedDirs(m), plantedClones(m)) {
		checkPlanted(m, p, before, i%harness.Count(3, 1) == 0)
	}
}

// checkPlanted plants a problem and has it found; again: and looks once more when it is healed.
func checkPlanted(m *harness.Machine, p planted, before []finding, again bool) {
	m.Helper()
	if p.plant != nil {
		p.plant()
	}
	named, code := doctor(m, p.behind...)
	var got []string
	says := false
	for _, f := range named {
		if slices.Contains(before, f) {
			continue
		}
		got = append(got, f.Check+" "+f.Level)
		says = says || strings.Contains(f.Text+f.Action, p.says)
		m.Logf("%s: %s (exit status %d)\n  %s\n  -> %s", p.name, got[len(got)-1], code, f.Text, f.Action)
	}
	if !slices.Equal(got, p.checks) || code != p.code || len(got) > 0 && !says {
		m.Errorf("%s: doctor names %q, exit status %d; expected %q, %d, saying %q", p.name, got, code, p.checks, p.code, p.says)
	}
	if p.heal == nil {
		return
	}
	p.heal()
	if !again {
		return
	}
	if after, code := doctor(m); !slices.Equal(checksOf(after), checksOf(before)) || code != exit.OK {
		m.Errorf("%s: after it was healed doctor names %+v, exit status %d", p.name, after, code)
	}
}

func checksOf(all []finding) (names []string) {
	for _, f := range all {
		names = append(names, f.Check+" "+f.Level)
	}
	return names
}

func plantedInKernel(m *harness.Machine) []planted {
	const ring, most, pages = "/proc/sys/kernel/io_uring_disabled", "/sys/module/ublk_drv/parameters/ublks_max", "/proc/sys/vm/nr_hugepages"
	all := []planted{
		{
			name: "the module is not loaded", plant: func() { m.MustRun("rmmod", "ublk_drv") }, heal: func() {
				if _, err := os.Stat("/sys/module/ublk_drv"); err == nil {
					m.Error("doctor has loaded the module")
				}
				m.MustRun("modprobe", "ublk_drv")
			},
			checks: []string{"driver problem"}, code: exit.Feature, says: "modprobe ublk_drv",
		},
		{
			name: "io_uring is switched off", plant: func() { m.WriteFile(ring, "2") }, heal: func() { m.WriteFile(ring, "0") },
			checks: []string{"io-uring problem"}, code: exit.Feature, says: "io_uring_disabled",
		},
		{
			name: "memory is short", plant: func() { takeMemory(m, 50*harness.MiB) }, heal: func() { m.WriteFile(pages, "0") },
			checks: []string{"memory warning"}, code: exit.OK, says: "dry-run",
		},
	}
	if strings.HasPrefix(m.Release(), "6.12.") { // later ones count no devices of root's
		all = append(all, planted{
			name: "no more devices", plant: func() { m.WriteFile(most, "0") }, heal: func() { m.WriteFile(most, "64") },
			checks: []string{"devices warning"}, code: exit.OK, says: "ublks_max",
		})
	}
	return all
}

// takeMemory leaves that many bytes of memory, more or less: huge pages are in nobody's way and of
// no use.
func takeMemory(m *harness.Machine, leave int64) {
	m.Helper()
	var kilobytes int64
	_, rest, _ := strings.Cut(m.ReadFile("/proc/meminfo"), "MemAvailable:")
	if _, err := fmt.Sscanf(rest, "%d", &kilobytes); err != nil {
		m.Fatal(err)
	}
	m.DropCaches()
	m.WriteFile("/proc/sys/vm/nr_hugepages", strconv.FormatInt((kilobytes*harness.KiB-leave)/(2*harness.MiB), 10))
}

func plantedLimits(m *harness.Machine) []planted {
	return []planted{
		{
			name: "memory cannot be locked", behind: []string{"setpriv", "--bounding-set=-sys_resource,-ipc_lock", "prlimit", "--memlock=65536:65536"},
			checks: []string{"memory-lock warning", "reclaim warning"}, says: "LimitMEMLOCK",
		},
		{
			name: "no CAP_SYS_RESOURCE", behind: []string{"prlimit", "--memlock=unlimited:unlimited", "setpriv", "--bounding-set=-sys_resource"},
			checks: []string{"reclaim warning"}, says: "CAP_SYS_RESOURCE",
		},
		{
			name: "no CAP_SYS_ADMIN", behind: []string{"setpriv", "--bounding-set=-sys_admin"},
			checks: []string{"permission problem"}, code: exit.Denied, says: "CAP_SYS_ADMIN",
		},
		{
			name: "few open files", behind: []string{"prlimit", "--nofile=64:64"},
			checks: []string{"open-files warning"}, says: "LimitNOFILE",
		},
		{
			name: "no blkid", behind: []string{"env", "PATH=/nonexistent"},
			checks: []string{"blkid problem"}, code: exit.Other, says: "util-linux",
		},
		{name: "not root", behind: []string{"setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"}},
	}
}

func plantedDirs(m *harness.Machine) []planted {
	unfile := func() { _ = os.Remove(harness.RunDir) }
	return []planted{
		{
			name: "another file system has the place of the live maps", plant: m.MountMaps("-t", "ramfs", "none"), heal: m.UnmountMaps,
			checks: []string{"live-maps problem"}, code: exit.Other, says: "umount",
		},
		{
			name: "live maps may be swapped out", plant: m.MountMaps("-t", "tmpfs", "none"), heal: m.UnmountMaps,
			checks: []string{"live-maps warning"}, says: "swapped",
		},
		{
			name: "no space for live maps", plant: m.MountMaps("-t", "tmpfs", "-o", "noswap,size=1M", "none"), heal: m.UnmountMaps,
			checks: []string{"live-maps problem"}, code: exit.Other, says: "remount",
		},
		{
			name: "the run directory is a file", plant: func() {
				if err := os.RemoveAll(harness.RunDir); err != nil {
					m.Fatal(err)
				}
				if err := os.WriteFile(harness.RunDir, nil, 0o600); err != nil {
					m.Fatal(err)
				}
			}, heal: unfile, checks: []string{"run-folder problem"}, code: exit.Other, says: harness.RunDir,
		},
		{
			name: "the run directory is open to all", plant: func() { m.MustRun("mkdir", "-m", "755", harness.RunDir) }, heal: unfile,
			checks: []string{"run-folder warning"}, says: "chmod 700",
		},
		{
			name: "records cannot be written", plant: func() {
				m.MustRun("mkdir", "-p", harness.RecordDir)
				m.MustRun("mount", "-t", "tmpfs", "-o", "ro,mode=700", "none", harness.RecordDir)
			}, heal: func() { m.MustRun("umount", harness.RecordDir); _ = os.RemoveAll(harness.RecordDir) },
			checks: []string{"records warning"}, says: "read-only",
		},
		{
			name: "definitions and no unit", plant: func() {
				m.MustRun("mkdir", "-p", "/etc/ublk-clone")
				if err := os.WriteFile("/etc/ublk-clone/x.toml", []byte("source = \"/s\"\ndest = \"/d\"\nmetadata = \"/m\"\n"), 0o600); err != nil {
					m.Fatal(err)
				}
			}, heal: func() { _ = os.RemoveAll("/etc/ublk-clone") },
			checks: []string{"service warning"}, says: "unit",
		},
	}
}

func plantedClones(m *harness.Machine) []planted {
	source, metadata := m.NullBlk("src", harness.NullOptions{MiB: 16}), m.Missing("meta")
	dest := m.Known("dst", m.NullBlk("dst", harness.NullOptions{MiB: 16}), 16*harness.MiB)
	c := m.NewClone(source, dest, metadata, "--no-hydration")
	kept := metadata.Path + ".kept"
	rename := func(from, to string) {
		if err := os.Rename(from, to); err != nil {
			m.Fatal(err)
		}
	}
	return []planted{
		{
			name: "a dead clone", plant: func() { c.Add(); c.End(syscall.SIGKILL) }, heal: c.Recover,
			checks: []string{"clones problem"}, code: exit.NoAnswer, says: "recover " + c.Name,
		},
		{
			name: "a device that nobody serves or knows", plant: func() {
				c.End(syscall.SIGKILL)
				if err := os.RemoveAll(harness.RunDir); err != nil {
					m.Fatal(err)
				}
			}, heal: func() { m.MustRun(harness.Command, "prune"); c.Add() },
			checks: []string{"left-devices problem"}, code: exit.NoAnswer, says: "prune",
		},
		{
			name: "metadata has vanished", plant: func() { c.Del(); rename(metadata.Path, kept) }, heal: func() { rename(kept, metadata.Path) },
			checks: []string{"records problem"}, code: exit.Metadata, says: metadata.Path,
		},
		{
			name: "destination and metadata are away", plant: func() {
				records, _ := filepath.Glob(harness.RecordDir + "/*.json")
				if len(records) != 1 {
					m.Fatalf("records: %v", records)
				}
				text := strings.ReplaceAll(m.ReadFile(records[0]), dest.Path, "/dev/away")
				if err := os.WriteFile(records[0], []byte(strings.ReplaceAll(text, metadata.Path, "/away")), 0o600); err != nil {
					m.Fatal(err)
				}
			}, heal: func() { _ = os.RemoveAll(harness.RecordDir) },
			checks: []string{"records warning"}, says: "/dev/away",
		},
	}
}
