package main

import (
	"bytes"
	"encoding/json"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/ublk-clone/ublk-clone/internal/control"
	"github.com/ublk-clone/ublk-clone/internal/definition"
	"github.com/ublk-clone/ublk-clone/internal/exit"
)

// deadAndSilent are two clones: the daemon of a is dead and had no device, that of b lives and says
// nothing.
func deadAndSilent(t *testing.T) control.Dir {
	t.Helper()
	dir := control.Dir(t.TempDir())
	for _, name := range []string{"a", "b"} {
		if err := dir.Store(&definition.Definition{Name: name, Source: "/s", Dest: "/d", Metadata: "/m", Size: 1 << 20}); err != nil {
			t.Fatal(err)
		}
	}
	lock, err := dir.Acquire("b")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = lock.Release() })
	return dir
}

// TestDeadStatus: what is not known of a clone without a daemon is not printed as zero, and what is
// printed says what to do.
func TestDeadStatus(t *testing.T) {
	dir := deadAndSilent(t)
	for _, c := range []struct {
		line string
		code int
		says []string
	}{
		{"list", exit.OK, []string{" dead ", " silent "}},
		{"status a", exit.OK, []string{"Dead: ", "no block device", "ublk-clone add"}},
		{"status b", exit.OK, []string{"Silent: ", "coming up", "recover b"}},
		{"status", exit.OK, []string{"Dead: ", "Silent: "}},
		{"status a -o dm", exit.NoAnswer, []string{"dead"}},
		{"status b -o dm", exit.NoAnswer, []string{"coming up"}},
		{"recover a", exit.Other, []string{"block device"}},
		{"pause a", exit.NoAnswer, []string{"dead"}},
		{"del b", exit.NoAnswer, []string{"coming up"}},
	} {
		var o, e bytes.Buffer
		p := &program{out: &o, errs: &e, dir: dir}
		code := p.run(append([]string{"ublk-clone"}, strings.Fields(c.line)...))
		text := o.String() + e.String()
		for _, says := range c.says {
			if code != c.code || !strings.Contains(text, says) || strings.Contains(text, "%") {
				t.Errorf("%s: exit status %d, %s", c.line, code, text)
			}
		}
	}
	var o bytes.Buffer
	p := &program{out: &o, errs: io.Discard, dir: dir}
	var got report
	if code := p.run([]string{"ublk-clone", "list", "-o", "json"}); code != exit.OK || json.Unmarshal(o.Bytes(), &got) != nil ||
		len(got.Clones) != 2 || got.Clones[0].State != control.StateDead || got.Clones[1].State != control.StateSilent || got.Clones[0].ETA != nil {
		t.Errorf("list in JSON: %s", o.String())
	}
}

// TestDying: a daemon that was killed takes requests until the kernel has taken it down, and
// answers none. It is dead, not silent.
func TestDying(t *testing.T) {
	for line, says := range map[string]string{"status c": "Dead: ", "status c -o dm": "dead", "pause c": "dead", "del c --force": ""} {
		dir := control.Dir(t.TempDir())
		if err := dir.Store(&definition.Definition{Name: "c", Source: "/s", Dest: "/d", Metadata: "/m", Size: 1 << 20}); err != nil {
			t.Fatal(err)
		}
		dying(t, dir, "c")
		var o bytes.Buffer
		p := &program{out: &o, errs: &o, dir: dir}
		p.run(append([]string{"ublk-clone"}, strings.Fields(line)...))
		if text := o.String(); !strings.Contains(text, says) || strings.Contains(text, "does not answer") {
			t.Errorf("%s: %s", line, text)
		}
		if _, err := dir.Load("c"); (exit.Code(err) == exit.NoClone) != (says == "") {
			t.Errorf("after %s: %v", line, err)
		}
	}
}

// dying is a daemon that ends with a request in its queue.
func dying(t *testing.T, dir control.Dir, name string) {
	t.Helper()
	lock, err := dir.Acquire(name)
	if err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("unix", dir.SocketPath(name))
	if err != nil {
		t.Fatal(err)
	}
	time.AfterFunc(100*time.Millisecond, func() {
		listener.Close()
		time.Sleep(100 * time.Millisecond)
		released(t, lock)
	})
}
