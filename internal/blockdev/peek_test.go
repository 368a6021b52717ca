package blockdev

import (
	"errors"
	"os"
	"testing"

	"github.com/ublk-clone/ublk-clone/internal/exit"
)

// TestPeekAtSource: what is only looked at can be compared with what is known of it, and a change
// meanwhile is noticed.
func TestPeekAtSource(t *testing.T) {
	path := image(t, mib)
	want, err := mustOpen(t, Source, path, Options{}).Fingerprint(nil)
	if err != nil {
		t.Fatal(err)
	}
	d, err := Peek(Source, path, 512)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if got, err := d.Fingerprint(&want.Pieces); err != nil || got != want {
		t.Errorf("%+v, %v", got, err)
	}
	if err := os.WriteFile(path, make([]byte, mib), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Fingerprint(nil); !errors.Is(err, ErrChanged) {
		t.Errorf("after a change: %v", err)
	}
}

// TestPeek: what a daemon holds can be looked at, and the look keeps nobody from it.
func TestPeek(t *testing.T) {
	for _, role := range []Role{Source, Dest, Metadata} {
		path := image(t, mib)
		held := mustOpen(t, role, path, Options{})
		d, err := Peek(role, path, 512)
		if err != nil {
			t.Fatalf("%s: %v", role, err)
		}
		if d.Stat().Inode != held.stat.Inode || d.Size() != mib {
			t.Errorf("%s: of %d bytes", role, d.Size())
		}
		if err := d.Answers(); err != nil {
			t.Errorf("%s: %v", role, err)
		}
		if readOnly, err := d.ReadOnly(); readOnly || err != nil {
			t.Errorf("%s: read-only: %v, %v", role, readOnly, err)
		}
		if _, err := d.File().WriteAt([]byte("x"), 0); err == nil {
			t.Errorf("%s can be written", role)
		}
		if err := held.Close(); err != nil {
			t.Fatal(err)
		}
		mustOpen(t, role, path, Options{}) // beside the look
		if err := d.Close(); err != nil {
			t.Error(err)
		}
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		_, err = Peek(role, path, 512)
		wantCode(t, role.String()+" that is gone", err, role.code())
	}
	_, err := Peek(Dest, os.DevNull, 512)
	wantCode(t, "a character device", err, exit.Dest)
}
