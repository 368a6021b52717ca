package udev

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/ublk-clone/ublk-clone/internal/control"
	"github.com/ublk-clone/ublk-clone/internal/definition"
	"github.com/ublk-clone/ublk-clone/internal/file"
)

// fakeDev is a directory /dev with these devices, which are files, and no udev.
func fakeDev(t *testing.T, devices ...string) Links {
	t.Helper()
	dev := filepath.Join(t.TempDir(), "dev")
	for _, d := range append(devices, "mapper/control") {
		path := filepath.Join(dev, d)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return Links{Dir: filepath.Join(dev, "ublk-clone"), udev: filepath.Join(dev, "none"), leads: func(string, uint64) bool { return false }}
}

// dev is the path of a device.
func (l Links) dev(name string) string { return filepath.Join(filepath.Dir(l.Dir), name) }

// put makes a link as somebody else would.
func (l Links) put(t *testing.T, name, to string) {
	t.Helper()
	if err := os.MkdirAll(l.Dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(to, l.path(name)); err != nil {
		t.Fatal(err)
	}
}

// shows checks where the link of a clone leads, "" for none.
func (l Links) shows(t *testing.T, when, name, want string) {
	t.Helper()
	if to, _ := os.Readlink(l.path(name)); to != want {
		t.Errorf("%s: %s leads to %q, not to %q", when, name, to, want)
	}
}

// TestGiveName: a link is made, and replaced at once, as whoever looks for it all the time sees.
func TestGiveName(t *testing.T) {
	l := fakeDev(t, "ublkb7", "mapper/home")
	stop, ended := make(chan struct{}), make(chan error, 1)
	for i := range 200 {
		top, want := l.dev("ublkb7"), "../ublkb7"
		if i%2 == 1 {
			top, want = l.dev("mapper/home"), "../mapper/home"
		}
		if path, err := l.Give("data", top, 7); err != nil || path != l.path("data") {
			t.Fatal(path, err)
		}
		l.shows(t, "given", "data", want)
		if i > 0 {
			continue
		}
		if info, err := os.Stat(l.Dir); err != nil || info.Mode().Perm() != 0o755 {
			t.Errorf("the directory: %v, %v", info, err)
		}
		go func() {
			for {
				if _, err := os.Stat(l.path("data")); err != nil {
					ended <- err
					return
				}
				select {
				case <-stop:
					ended <- nil
					return
				default:
				}
			}
		}()
	}
	close(stop)
	if err := <-ended; err != nil {
		t.Errorf("while the link is replaced: %v", err)
	}
	if entries, err := os.ReadDir(l.Dir); err != nil || len(entries) != 1 {
		t.Errorf("left: %v, %v", entries, err)
	}
}

// TestGiveOthersName: what cannot be ours stays, and the clone has no name then.
func TestGiveOthersName(t *testing.T) {
	l := fakeDev(t, "ublkb7", "sda")
	for name, to := range map[string]string{"link": "../sda", "absolute": "/etc/passwd"} {
		l.put(t, name, to)
		if path, err := l.Give(name, l.dev("ublkb7"), 7); err == nil {
			t.Errorf("%s: %s was given", name, path)
		}
		if err := l.Take(&definition.Definition{Name: name}); err != nil {
			t.Error(err)
		}
		l.shows(t, "not ours", name, to)
	}
	if err := os.WriteFile(l.path("file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if path, err := l.Give("file", l.dev("ublkb7"), 7); err == nil {
		t.Errorf("%s was given in place of a file", path)
	}
	if err := l.Collect(control.Dir(t.TempDir())); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(l.path("file")); err != nil {
		t.Error(err)
	}
	l.Dir = l.path("file") // where no directory can be
	if path, err := l.Give("x", l.dev("ublkb7"), 7); err == nil {
		t.Errorf("%s was given without a directory", path)
	}
	if err := errors.Join(l.Take(&definition.Definition{Name: "x"}), l.Collect(control.Dir(t.TempDir()))); err != nil {
		t.Errorf("with a file in the place of the directory: %v", err)
	}
}

// TestGiveByUdev: udev is waited for where it has our rules, and where it makes no link after all it
// is made here.
func TestGiveByUdev(t *testing.T) {
	l := fakeDev(t, "ublkb7", "control")
	first, second := t.TempDir(), t.TempDir()
	l.udev, l.rules = l.dev("control"), []string{first, second}
	rule := func(dir, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, nameRules), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	asked := 0
	l.leads = func(string, uint64) bool { asked++; return asked > 3 }
	if l.byUdev() {
		t.Error("there are no rules")
	}
	rule(second, "SYMLINK")
	if !l.byUdev() {
		t.Error("there are rules")
	}
	if path, err := l.Give("data", l.dev("ublkb7"), 7); err != nil || path != l.path("data") || asked < 4 {
		t.Error(path, err, asked)
	}
	l.shows(t, "udev has made it", "data", "")
	l.leads = func(string, uint64) bool { return false }
	if _, err := l.Give("data", l.dev("ublkb7"), 7, l.dev("ublkb7")); err != nil {
		t.Error(err)
	}
	l.shows(t, "udev is late", "data", "../ublkb7")
	rule(first, "")
	if l.byUdev() {
		t.Error("the rules are masked")
	}
}

// TestTakeName: the end of a clone takes its link, but for one to a layer that lives on.
func TestTakeName(t *testing.T) {
	l := fakeDev(t, "ublkb7", "mapper/home", "dm-3")
	def := &definition.Definition{Name: "data", Added: definition.Added{Device: "/dev/ublkb7"}}
	for to, want := range map[string]string{
		"../ublkb7": "", "../ublkb8": "", "../mapper/gone": "", "../dm-4": "", "../mapper/home": "../mapper/home", "../dm-3": "../dm-3",
	} {
		l.put(t, "data", to)
		l.put(t, ".data.new", to)
		if err := l.Take(def); err != nil {
			t.Error(err)
		}
		l.shows(t, "ended", "data", want)
		l.shows(t, "ended", ".data.new", "")
		if err := file.Remove(l.path("data")); err != nil {
			t.Fatal(err)
		}
	}
	if err := fakeDev(t).Take(def); err != nil {
		t.Errorf("without a directory: %v", err)
	}
}

// TestCollectNames: of what killed daemons have left the links go that lead nowhere, or to a device
// that is another's by now.
func TestCollectNames(t *testing.T) {
	l := fakeDev(t, "ublkb7", "ublkb7p1", "mapper/home")
	dir := control.Dir(t.TempDir())
	if err := dir.Store(&definition.Definition{Name: "there"}); err != nil {
		t.Fatal(err)
	}
	links := map[string]struct {
		to   string
		stay bool
	}{
		"there": {"../ublkb7", true}, "there-part1": {"../ublkb7p1", true}, "finished": {"../mapper/home", true},
		"gone": {"../ublkb7", false}, "dangling": {"../ublkb9", false}, "removed": {"../mapper/else", false}, ".half.new": {"../ublkb7", false},
	}
	for name, link := range links {
		l.put(t, name, link.to)
	}
	for range 2 {
		if err := l.Collect(dir); err != nil {
			t.Error(err)
		}
	}
	for name, link := range links {
		want := ""
		if link.stay {
			want = link.to
		}
		l.shows(t, "collected", name, want)
		if name[0] != '.' && l.Now(name) != "" != link.stay {
			t.Errorf("%s now: %q", name, l.Now(name))
		}
	}
	if err := fakeDev(t).Collect(dir); err != nil {
		t.Errorf("without a directory: %v", err)
	}
}
