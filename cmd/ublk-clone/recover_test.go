package main

import (
	"errors"
	"fmt"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/ublk-clone/ublk-clone/internal/exit"
	"github.com/ublk-clone/ublk-clone/metadata"
)

// TestEndRecovery: only an error that proves metadata or live map unfit ends a clone whose recovery has failed.
func TestEndRecovery(t *testing.T) {
	for _, c := range []struct {
		name string
		err  error
		ends bool
	}{
		{"no error", nil, false},
		{"not written", metaError("write", "meta", syscall.EIO), false},
		{"a newer version", metaError("open", "meta", metadata.ErrVersion), false},
		{"not opened", &exit.Error{Code: exit.Metadata, Cause: syscall.EROFS}, false},
		{"another device's", fmt.Errorf("start: %w", metaError("use", "meta", metadata.ErrMismatch)), true},
		{"refused", errors.Join(&exit.Error{Code: exit.Metadata, Cause: unfitError{errors.New("older")}}, nil), true},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := &program{dir: runDir(t.TempDir())}
			def := definition{Name: "c"}
			if err := p.dir.store(&def); err != nil {
				t.Fatal(err)
			}
			if err := p.endRecovery(start{Definition: def}, c.err); !errors.Is(err, c.err) {
				t.Errorf("no recovery: %v", err)
			}
			if _, err := p.dir.load("c"); err != nil {
				t.Errorf("a start that is no recovery: %v", err)
			}
			if err := p.endRecovery(start{Definition: def, Recover: true}, c.err); exit.Code(err) != exit.Code(c.err) {
				t.Errorf("the error is %v", err)
			}
			if _, err := os.Stat(p.dir.definition("c")); errors.Is(err, os.ErrNotExist) != c.ends {
				t.Errorf("the definition: %v", err)
			}
		})
	}
}

// TestServed: a name that is locked and does not answer is waited for; what becomes of it tells whether there is
// something to recover.
func TestServed(t *testing.T) {
	const soon = 100 * time.Millisecond
	t.Run("it ends", func(t *testing.T) {
		dir := runDir(t.TempDir())
		if err := dir.store(&definition{Name: "c"}); err != nil {
			t.Fatal(err)
		}
		lock, err := dir.acquire("c")
		if err != nil {
			t.Fatal(err)
		}
		time.AfterFunc(soon, func() { lock.release() })
		if served, err := dir.served("c"); served || err != nil {
			t.Errorf("a daemon that ends: served %v, %v", served, err)
		}
	})
	t.Run("it comes up", func(t *testing.T) {
		dir, _ := testServer(t, echo)
		lock, err := dir.acquire("c")
		if err != nil {
			t.Fatal(err)
		}
		defer lock.release()
		if served, err := dir.served("c"); !served || err != nil {
			t.Errorf("a daemon that answers: served %v, %v", served, err)
		}
	})
}
