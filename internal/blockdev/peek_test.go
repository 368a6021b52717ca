package blockdev

import (
	"os"
	"testing"

	"github.com/ublk-clone/ublk-clone/internal/exit"
)

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
