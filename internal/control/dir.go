package control

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/ublk-clone/ublk-clone/internal/definition"
	"github.com/ublk-clone/ublk-clone/internal/exit"
	"github.com/ublk-clone/ublk-clone/internal/file"
	"github.com/ublk-clone/ublk-clone/internal/sys"
)

// Possible is create, that changes nothing.
func (d Dir) Possible() error {
	info, err := os.Stat(string(d))
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil
	case err == nil && !info.IsDir():
		err = &os.PathError{Op: "mkdir", Path: string(d), Err: syscall.ENOTDIR}
	}
	if err != nil {
		return d.Fail("make directory", string(d), err)
	}
	return nil
}

// AwaitEnd says whether the daemon of that name has ended in time.
func (d Dir) AwaitEnd(name string, limit time.Duration) bool {
	for deadline := time.Now().Add(limit); d.Alive(name); time.Sleep(HolderPause) {
		if time.Now().After(deadline) {
			return false
		}
	}
	return true
}

// runDirEnv names another directory than the default, for tests.
const runDirEnv = "UBLK_CLONE_RUN_DIR"

const defaultRunDir = "/run/ublk-clone"

// Dir is the directory that holds, for each clone NAME,
//
//	NAME.lock   locked by its daemon for as long as it lives
//	NAME.json   its definition
//	NAME.sock   the control socket
//	*.udev      what udev is told of its devices, called after them (package udev)
//	NAME.begun  such a file that is being written
//	NAME.log    what the daemon logged; kept after a failure, until prune
type Dir string

func DefaultDir() Dir {
	return Dir(cmp.Or(os.Getenv(runDirEnv), defaultRunDir))
}

// Create makes the directory, for root only.
func (d Dir) Create() error {
	err := file.MakeDir(string(d), 0o700)
	if err == nil {
		err = os.Chmod(string(d), 0o700)
	}
	if err != nil {
		return d.Fail("make directory", string(d), err)
	}
	return nil
}

func (d Dir) LockPath(name string) string       { return filepath.Join(string(d), name+".lock") }
func (d Dir) DefinitionPath(name string) string { return filepath.Join(string(d), name+".json") }
func (d Dir) SocketPath(name string) string     { return filepath.Join(string(d), name+".sock") }
func (d Dir) LogPath(name string) string        { return filepath.Join(string(d), name+".log") }

// BegunPath is a file for udev that is being written.
func (d Dir) BegunPath(name string) string { return filepath.Join(string(d), name+".begun") }

// TrialPath is a file that a successor makes to see that one can be made, and removes.
func (d Dir) TrialPath(name string) string { return filepath.Join(string(d), name+".try") }

func (d Dir) Fail(doing, object string, err error) error {
	e := &exit.Error{Code: exit.Other, Doing: doing, Object: object, Cause: err}
	if errors.Is(err, fs.ErrPermission) {
		e.Code, e.Next = exit.Denied, "Run it as root."
	}
	return e
}

// Names lists the clones that have a definition, in order.
func (d Dir) Names() ([]string, error) {
	entries, err := os.ReadDir(string(d))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, d.Fail("list clones in", string(d), err)
	}
	var names []string
	for _, e := range entries {
		name, ok := strings.CutSuffix(e.Name(), ".json")
		if ok && definition.IsName(name) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names, nil
}

// Load reads a definition; exit code 3 if there is none.
func (d Dir) Load(name string) (*definition.Definition, error) {
	b, err := os.ReadFile(d.DefinitionPath(name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, &exit.Error{Code: exit.NoClone, Doing: "find clone", Object: name, Cause: errors.New("there is none of that name"),
			Next: "`ublk-clone list` shows the clones."}
	}
	if err != nil {
		return nil, d.Fail("read definition", d.DefinitionPath(name), err)
	}
	def := &definition.Definition{}
	if err := json.Unmarshal(b, def); err != nil {
		return nil, d.Fail("read definition", d.DefinitionPath(name), err)
	}
	return def, nil
}

// Store writes a definition: whole or not at all. What is there already needs no space.
func (d Dir) Store(def *definition.Definition) error {
	b, err := json.MarshalIndent(def, "", "  ")
	if err != nil {
		return d.Fail("write definition", def.Name, err)
	}
	path := d.DefinitionPath(def.Name)
	if there, err := os.ReadFile(path); err == nil && bytes.Equal(there, append(b, '\n')) {
		return nil
	}
	if err := file.Replace(path, append(b, '\n'), 0o600); err != nil {
		return d.Fail("write definition", path, err)
	}
	return nil
}

// NameLock is held by the daemon of a clone. While it is, no other daemon of that name starts; when
// the process is gone, it is free. It is two locks: a record lock, which others can ask for without
// taking anything, and a flock, by which releases before it know a daemon.
type NameLock struct {
	file *os.File
	path string
}

// Acquire takes the lock of a name or fails with exit code 5. The file is
// removed at release, so what was locked must still be what the path names.
func (d Dir) Acquire(name string) (*NameLock, error) {
	path := d.LockPath(name)
	for {
		f, err := sys.Open(path, os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			return nil, d.Fail("lock", path, err)
		}
		err = sys.LockRecord(int(f.Fd()))
		if err == nil {
			err = flockAside(int(f.Fd()))
		}
		if errors.Is(err, syscall.EWOULDBLOCK) || errors.Is(err, syscall.EACCES) {
			f.Close()
			return nil, NameTaken(name)
		}
		if err != nil {
			f.Close()
			return nil, d.Fail("lock", path, err)
		}
		if sameFile(f, path) {
			return &NameLock{file: f, path: path}, nil
		}
		f.Close()
	}
}

// asideLimit is how long those who look for a flock by taking a shared one may be in the way. With
// the record lock held nobody of this release does that any more.
const asideLimit = time.Second

// flockAside takes the flock, which who only looks for it does not prevent.
func flockAside(fd int) error {
	for deadline := time.Now().Add(asideLimit); ; time.Sleep(5 * time.Millisecond) {
		err := sys.FlockExclusive(fd)
		if !errors.Is(err, syscall.EWOULDBLOCK) || time.Now().After(deadline) {
			return err
		}
	}
}

func NameTaken(name string) error {
	return &exit.Error{Code: exit.Busy, Doing: "lock the name", Object: name,
		Cause: errors.New("another daemon of that name starts, runs or stops"), Next: "See `ublk-clone status " + name + "`, then try again."}
}

func sameFile(f *os.File, path string) bool {
	open, errOpen := sys.Fstat(int(f.Fd()))
	named, errNamed := sys.StatPath(path)
	return errOpen == nil && errNamed == nil && open.Dev == named.Dev && open.Inode == named.Inode
}

// Release removes the file first, then unlocks it.
func (l *NameLock) Release() error {
	return errors.Join(file.Remove(l.path), l.file.Close())
}

// Alive says whether a daemon of that name holds the lock. It takes a lock for a moment only where
// the record lock is free, to find a daemon of an earlier release.
func (d Dir) Alive(name string) bool {
	f, err := sys.Open(d.LockPath(name), os.O_RDWR, 0)
	if err != nil {
		return false
	}
	defer f.Close()
	if locked, err := sys.RecordLocked(int(f.Fd())); err == nil && locked {
		return true
	}
	return errors.Is(sys.FlockShared(int(f.Fd())), syscall.EWOULDBLOCK)
}

// Tail is the end of the daemon's log, for the message of a start that failed: what it has said
// last, or what ended it without its doing, and not the trace behind.
func (d Dir) Tail(name string, lines int) string {
	b, err := os.ReadFile(d.LogPath(name))
	if err != nil {
		return fmt.Sprintf("no log: %v", err)
	}
	return lastWords(string(b), lines)
}

// fatalWords begin what Go's runtime or package guard says when they end a process.
const fatalWords = `(?m)^(panic: |fatal error: |SIG[A-Z]+: |\S+: fatal: ).*$`

// lastWords is the line that says why the process ended, if only a trace is behind it; else the
// last lines.
func lastWords(log string, lines int) string {
	if found := regexp.MustCompile(fatalWords).FindAllStringIndex(log, -1); len(found) > 0 {
		last := found[len(found)-1]
		if !strings.Contains(log[last[1]:], "\n{") {
			return log[last[0]:last[1]]
		}
	}
	all := strings.Split(strings.TrimSpace(log), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}
