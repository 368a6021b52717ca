package blockdev

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/ublk-clone/ublk-clone/internal/fingerprint"
	"github.com/ublk-clone/ublk-clone/internal/sys"
)

// scribble changes one byte of the file, and puts its modification time back.
func scribble(t *testing.T, path string) {
	t.Helper()
	st, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.WriteAt([]byte{0xee}, 12345)
	if err := errors.Join(err, f.Close(), os.Chtimes(path, st.ModTime(), st.ModTime())); err != nil {
		t.Fatal(err)
	}
}

// TestChangedFile: what can be noticed of an open source file is (I14), and what was noticed is the
// present of Again.
func TestChangedFile(t *testing.T) {
	for name, c := range map[string]struct {
		change  func(path string) error
		renamed bool // the bytes are there still
		resized bool // Again is refused
	}{
		"written":    {change: func(path string) error { return os.WriteFile(path, make([]byte, 2*mib), 0o600) }},
		"shorter":    {change: func(path string) error { return os.Truncate(path, mib) }, resized: true},
		"longer":     {change: func(path string) error { return os.Truncate(path, 3*mib) }, resized: true},
		"there-back": {change: func(path string) error { return errors.Join(os.Truncate(path, 0), os.Truncate(path, 2*mib)) }},
		"time put back": {change: func(path string) error {
			scribble(t, path)
			return nil
		}},
		"touched": {change: func(path string) error { return os.Chtimes(path, time.Unix(1, 0), time.Unix(1, 0)) }},
		"mode":    {change: func(path string) error { return os.Chmod(path, 0o644) }},
		"moved":   {change: func(path string) error { return os.Rename(path, path+".old") }},
		"linked":  {change: func(path string) error { return os.Link(path, path+".link") }, renamed: true},
		"deleted": {change: os.Remove, renamed: true},
		"replaced": {change: func(path string) error {
			return errors.Join(os.WriteFile(path+".new", []byte("x"), 0o600), os.Rename(path+".new", path))
		}, renamed: true},
	} {
		t.Run(name, func(t *testing.T) {
			path := image(t, 2*mib)
			d := mustOpen(t, Source, path, Options{})
			defer d.Close()
			if err := errors.Join(d.CheckRead(), d.Changed()); err != nil {
				t.Fatalf("at once: %v", err)
			}
			if err := c.change(path); err != nil {
				t.Fatal(err)
			}
			var renamed *RenamedError
			err := d.CheckRead()
			if errors.As(err, &renamed) != c.renamed || errors.Is(err, ErrChanged) == c.renamed {
				t.Errorf("noticed %v", err)
			}
			if _, err := d.Fingerprint(nil); (err == nil) != c.renamed {
				t.Errorf("a fingerprint of what has changed: %v", err)
			}
			again, err := d.Again()
			if (err != nil) != c.resized {
				t.Errorf("again: %v", err)
			}
			if err == nil {
				if err := errors.Join(again.CheckRead(), again.Close()); err != nil {
					t.Errorf("the new present: %v", err)
				}
			}
		})
	}
}

// TestChangedAfterRename: that a file was renamed is told once, and hides no change that comes
// later.
func TestChangedAfterRename(t *testing.T) {
	path := image(t, 2*mib)
	d := mustOpen(t, Source, path, Options{})
	defer d.Close()
	if err := os.Link(path, path+".link"); err != nil {
		t.Fatal(err)
	}
	var renamed *RenamedError
	if err := d.CheckRead(); !errors.As(err, &renamed) {
		t.Errorf("first: %v", err)
	}
	if err := d.CheckRead(); err != nil {
		t.Errorf("then: %v", err)
	}
	time.Sleep(fineTimes)
	scribble(t, path)
	if err := d.CheckRead(); !errors.Is(err, ErrChanged) {
		t.Errorf("a change after it: %v", err)
	}
}

// TestEndIsNoHole: a file that is shorter than it was has no hole there (I14), whatever it is used
// for.
func TestEndIsNoHole(t *testing.T) {
	for _, role := range []Role{Source, Dest, Metadata} {
		path := image(t, 2*mib)
		d := mustOpen(t, role, path, Options{Force: true})
		defer d.Close()
		if err := os.Truncate(path, mib); err != nil {
			t.Fatal(err)
		}
		for _, look := range []func(int64) (int64, error){d.NextData, d.NextHole} {
			if at, err := look(mib + 4096); err == nil {
				t.Errorf("%v: byte %d behind the end", role, at)
			}
		}
	}
}

// TestHoleOfChangedSource: a hole that was made after the source was opened is none.
func TestHoleOfChangedSource(t *testing.T) {
	path := image(t, 2*mib)
	d := mustOpen(t, Source, path, Options{})
	defer d.Close()
	if err := errors.Join(os.Truncate(path, 0), os.Truncate(path, 2*mib)); err != nil {
		t.Fatal(err)
	}
	if at, err := d.NextData(0); !errors.Is(err, ErrChanged) {
		t.Errorf("data at %d, %v", at, err)
	}
}

// TestTooYoung: how long a file's times are too young to tell of a change.
func TestTooYoung(t *testing.T) {
	now := time.Unix(1000, 500_000_000)
	at := func(d time.Duration) int64 { return now.Add(d).UnixNano() }
	for name, c := range map[string]struct {
		mtime, ctime int64
		waits        bool
	}{
		"old":                    {at(-time.Hour), at(-time.Minute), false},
		"just written":           {at(-time.Millisecond), at(-time.Millisecond), true},
		"just touched":           {at(-time.Hour), at(-time.Millisecond), true},
		"whole seconds":          {at(-1500 * time.Millisecond), at(-1500 * time.Millisecond), true},
		"whole seconds, old":     {at(-2500 * time.Millisecond), at(-2500 * time.Millisecond), false},
		"only mtime is whole":    {at(-1500 * time.Millisecond), at(-time.Second), false},
		"of a clock that is off": {at(time.Hour), at(time.Hour), false},
	} {
		if wait := tooYoung(sys.Stat{Mtime: c.mtime, Ctime: c.ctime}, now); (wait > 0) != c.waits || wait > coarseTimes+time.Millisecond {
			t.Errorf("%s: %v", name, wait)
		}
	}
}

// TestFileBeingWritten: a source that somebody writes all the time is refused.
func TestFileBeingWritten(t *testing.T) {
	looks := 0
	_, err := agedStatBy(func() (sys.Stat, error) {
		looks++
		return sys.Stat{Ctime: time.Now().UnixNano()}, nil
	})
	if !errors.Is(err, ErrChanged) || looks != agedStatTries {
		t.Errorf("%v after %d looks", err, looks)
	}
}

// TestChangeBetweenTheEnds: what former releases have sampled does not see it.
func TestChangeBetweenTheEnds(t *testing.T) {
	path := filepath.Join(t.TempDir(), "source")
	print := func(fill byte) fingerprint.Print {
		b := make([]byte, 8*mib)
		for i := 3 * mib; i < 5*mib; i++ {
			b[i] = fill
		}
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		d := mustOpen(t, Source, path, Options{})
		defer d.Close()
		f, err := d.Fingerprint(nil)
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	a, b := print(1), print(2)
	if a.Sample != b.Sample || a.Pieces == b.Pieces {
		t.Errorf("ends the same: %v, pieces the same: %v", a.Sample == b.Sample, a.Pieces == b.Pieces)
	}
}
