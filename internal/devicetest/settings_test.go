//go:build device

package devicetest

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/ublk-clone/ublk-clone/internal/exit"
	"github.com/ublk-clone/ublk-clone/internal/runs"
)

// holdsSettings checks settings as the status tells them.
func (c *clone) holdsSettings(when string, want map[string]any) {
	c.m.Helper()
	got := c.status().Settings
	for name, value := range want {
		if fmt.Sprint(got[name]) != fmt.Sprint(value) {
			c.m.Errorf("%s: %s is %v, expected %v", when, name, got[name], value)
		}
	}
}

// TestSet: settings are changed while the clone runs, all that are named or none, and are kept over a deletion,
// a planned restart and the daemon's death.
func TestSet(t *testing.T) {
	runs.On(t, "6.12")
	m := newMachine(t)
	source, dest := m.nullBlk("src", nullOptions{mib: 16}), m.nullBlk("dst", nullOptions{mib: 16})
	c := m.addClone(source, dest, m.missing("meta"), "--no-hydration")
	c.setting("rate=50MiB/s", "min-rate=none", "threshold=7", "batch=3", "read-through=off", "retries=9")
	want := map[string]any{"rate": float64(50 * mib), "min_rate": 0, "hydration_threshold": 7, "hydration_batch_size": 3,
		"read_through": false, "retries": 9, "hydration": false}
	c.holdsSettings("as set", want)
	for _, bad := range []struct {
		words []string
		code  int
	}{
		{[]string{"rate=1MiB", "batch=0"}, exit.Usage},
		{[]string{"rate=1MiB", "colour=red"}, exit.Usage},
		{[]string{"retries=1", "rate=1MiB", "retries=2"}, exit.Usage},
		{[]string{"rate=1MiB", "discard-passdown=on"}, exit.Dest}, // which the destination has not
		{nil, exit.Usage},
	} {
		before := c.status().LastEvent
		m.expectFailure(m.try(command, append([]string{"set", c.name}, bad.words...)...), bad.code, "othing was changed")
		c.holdsSettings(strings.Join(bad.words, " "), want)
		if now := c.status().LastEvent; now != before {
			t.Errorf("%v: event %d", bad.words, now)
		}
	}
	for _, restart := range []struct {
		what string
		do   func()
	}{
		{"restart", func() { m.run(command, "restart", c.name) }},
		{"recover", func() { c.end(syscall.SIGKILL); c.recover() }},
		{"del and add", func() { c.del(); c.add() }},
	} {
		restart.do()
		c.holdsSettings("after "+restart.what, want)
		want["retries"] = want["retries"].(int) + 1
		c.setting(fmt.Sprintf("retries=%d", want["retries"]))
		c.holdsSettings("set after "+restart.what, want)
	}
	c.del()
}

// seenEvent is what the tests read of an event.
type seenEvent struct {
	Seq  uint64 `json:"seq"`
	Kind string `json:"kind"`
}

// nextEvent is `wait --for event`.
func (c *clone) nextEvent(after uint64) seenEvent {
	c.m.Helper()
	out := c.m.run(command, "wait", c.name, "--for", "event", "--after", strconv.FormatUint(after, 10), "--timeout", "30s", "-o", "json")
	var ev seenEvent
	if err := json.Unmarshal([]byte(out), &ev); err != nil {
		c.m.Fatalf("event: %v: %s", err, out)
	}
	return ev
}

// TestEvents: none is missed by who waits behind a number, also when the daemon was killed meanwhile.
func TestEvents(t *testing.T) {
	runs.On(t, "6.18")
	m := newMachine(t)
	source, dest := m.nullBlk("src", nullOptions{mib: 16}), m.nullBlk("dst", nullOptions{mib: 16})
	c := m.addClone(source, dest, m.missing("meta"), "--no-hydration")
	all := c.followEvents() // of all clones, whatever becomes of their daemons
	last := c.status().LastEvent
	m.expectFailure(m.try(command, "wait", c.name, "--for", "event", "--after", strconv.FormatUint(last, 10), "--timeout", "100ms"), exit.Timeout, "none")
	expect := func(kind string) {
		t.Helper()
		ev := c.nextEvent(last)
		if ev.Kind != kind || ev.Seq != last+1 {
			t.Errorf("behind %d came %+v, expected %s", last, ev, kind)
		}
		last = ev.Seq
		for {
			seen, err := all()
			if err != nil {
				t.Fatalf("events has ended: %v", err)
			}
			if seen == ev {
				return
			}
		}
	}
	c.setting("rate=50MiB/s")
	expect("settings")
	c.end(syscall.SIGKILL)
	m.expectFailure(m.try(command, "wait", c.name, "--for", "event", "--timeout", "30s"), exit.NoAnswer, "dead")
	c.recover()
	expect("started")
	c.setting("rate=none")
	expect("settings")
	m.run(command, "restart", c.name)
	expect("started")
	m.run(command, "resume", c.name)
	expect("settings")
	expect("hydrated")
	c.del()
}

// followEvents starts `events`, until the test ends; the function gives the next line.
func (c *clone) followEvents() func() (seenEvent, error) {
	c.m.Helper()
	cmd := exec.Command(command, "events", "-o", "json")
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		c.m.Fatal(err)
	}
	c.m.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	lines := bufio.NewScanner(out)
	return func() (ev seenEvent, err error) {
		if !lines.Scan() {
			return ev, errors.Join(errors.New("no more lines"), lines.Err())
		}
		return ev, json.Unmarshal(lines.Bytes(), &ev)
	}
}
