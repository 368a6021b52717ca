package harness

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Release is the kernel's.
func (m *Guest) Release() string {
	m.Helper()
	return strings.TrimSpace(m.ReadFile("/proc/sys/kernel/osrelease"))
}

// MapsDir is the mount point of the live maps.
const MapsDir = "/run/ublk-clone-maps"

// MountMaps mounts something else in the place of the live maps.
func (m *Machine) MountMaps(args ...string) func() {
	return func() {
		m.UnmountMaps()
		if err := os.MkdirAll(MapsDir, 0o700); err != nil {
			m.Fatal(err)
		}
		m.MustRun("mount", append(args, MapsDir)...)
	}
}

// UnmountMaps unmounts the live maps; it may fail.
func (m *Machine) UnmountMaps() { m.Try("umount", MapsDir) }

// ExpectFailure checks the exit code of a command and that its message says all of that.
func (m *Guest) ExpectFailure(o Outcome, code int, says ...string) {
	m.Helper()
	m.Logf("exit status %d: %s", o.Code, strings.TrimSpace(o.Stderr))
	if o.Code != code {
		m.Errorf("exit status %d, expected %d", o.Code, code)
	}
	for _, text := range says {
		if !strings.Contains(o.Stderr, text) {
			m.Errorf("the message does not say %q", text)
		}
	}
}

// KeptFiles are those that outlive daemons: live maps, and records of destinations.
func (m *Machine) KeptFiles() (all []string) {
	m.Helper()
	for _, dir := range []string{LiveMaps, RecordDir} {
		found, err := filepath.Glob(dir + "/*")
		if err != nil {
			m.Fatal(err)
		}
		all = append(all, found...)
	}
	return all
}

// LiveMaps is where the daemons keep the maps that outlive them.
const LiveMaps = "/run/ublk-clone-maps"

// Kill ends the clone's daemon as nothing can prevent, and waits for it to be gone.
func (c *Clone) Kill() {
	c.M.Helper()
	c.KillAfter(func() {})
}

// KillAfter kills the daemon right after work.
func (c *Clone) KillAfter(work func()) {
	c.M.Helper()
	pid := c.Status().PID
	work()
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		c.M.Fatal(err)
	}
	c.Path = ""
	c.M.WaitFor(CleanLimit, "the daemon to end", func() error {
		if n := len(Daemons()); n > 0 {
			return fmt.Errorf("%d are there", n)
		}
		return nil
	})
}

// DropLiveMaps removes what daemons have left for their successors, at the end of a test in which
// none comes.
func (m *Machine) DropLiveMaps() {
	m.Helper()
	maps, _ := filepath.Glob(LiveMaps + "/*")
	for _, path := range maps {
		if err := os.Remove(path); err != nil {
			m.Error(err)
		}
	}
}

// OtherBoot makes the machine one that was started again, as far as a daemon can see.
func (m *Machine) OtherBoot() {
	m.Helper()
	id := filepath.Join(m.Dir, "boot_id")
	if err := os.WriteFile(id, []byte("0b0e0b0e-0000-4000-8000-000000000001\n"), 0o444); err != nil {
		m.Fatal(err)
	}
	const path = "/proc/sys/kernel/random/boot_id"
	if err := unix.Mount(id, path, "", unix.MS_BIND, ""); err != nil {
		m.Fatalf("hide the boot id: %v", err)
	}
	m.Cleanup(func() { _ = unix.Unmount(path, 0) })
}

// RecordDir has a record for each destination that is partly hydrated.
const RecordDir = "/var/lib/ublk-clone"
