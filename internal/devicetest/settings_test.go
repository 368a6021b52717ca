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

	"github.com/ublk-clone/ublk-clone/internal/devicetest/harness"
	"github.com/ublk-clone/ublk-clone/internal/exit"
	"github.com/ublk-clone/ublk-clone/internal/runs"
)

// holdsSettings checks settings as the status tells them.
func holdsSettings(c *harness.Clone, when string, want map[string]any) {
	c.M.Helper()
	got := c.Status().Settings
	for name, value := range want {
		if fmt.Sprint(got[name]) != fmt.Sprint(value) {
			c.M.Errorf("%s: %s is %v, expected %v", when, name, got[name], value)
		}
	}
}

// TestSet: settings are changed while the clone runs, all that are named or none, and are kept over
// a deletion, a planned restart and the daemon's death.
func TestSet(t *testing.T) {
	runs.On(t, "6.12", runs.Sampled)
	m := harness.New(t)
	source, dest := m.NullBlk("src", harness.NullOptions{MiB: 16}), m.NullBlk("dst", harness.NullOptions{MiB: 16})
	c := m.AddClone(source, dest, m.Missing("meta"), "--no-hydration")
	c.Setting("rate=50MiB/s", "min-rate=none", "threshold=7", "batch=3", "read-through=off", "retries=9")
	want := map[string]any{"rate": float64(50 * harness.MiB), "min_rate": 0, "hydration_threshold": 7, "hydration_batch_size": 3,
		"read_through": false, "retries": 9, "hydration": false}
	holdsSettings(c, "as set", want)
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
		before := c.Status().LastEvent
		m.ExpectFailure(m.Try(harness.Command, append([]string{"set", c.Name}, bad.words...)...), bad.code, "othing was changed")
		holdsSettings(c, strings.Join(bad.words, " "), want)
		if now := c.Status().LastEvent; now != before {
			t.Errorf("%v: event %d", bad.words, now)
		}
	}
	for _, restart := range []struct {
		what string
		do   func()
	}{
		{"restart", func() { m.MustRun(harness.Command, "restart", c.Name) }},
		{"recover", func() { c.End(syscall.SIGKILL); c.Recover() }},
		{"del and add", func() { c.Del(); c.Add() }},
	} {
		restart.do()
		holdsSettings(c, "after "+restart.what, want)
		want["retries"] = want["retries"].(int) + 1
		c.Setting(fmt.Sprintf("retries=%d", want["retries"]))
		holdsSettings(c, "set after "+restart.what, want)
	}
	c.Del()
}

// seenEvent is what the tests read of an event.
type seenEvent struct {
	Seq  uint64 `json:"seq"`
	Kind string `json:"kind"`
}

// nextEvent is `wait --for event`.
func nextEvent(c *harness.Clone, after uint64) seenEvent {
	c.M.Helper()
	out := c.M.MustRun(harness.Command, "wait", c.Name, "--for", "event", "--after", strconv.FormatUint(after, 10), "--timeout", "30s", "-o", "json")
	var ev seenEvent
	if err := json.Unmarshal([]byte(out), &ev); err != nil {
		c.M.Fatalf("event: %v: %s", err, out)
	}
	return ev
}

// TestEvents: none is missed by who waits behind a number, also when the daemon was killed
// meanwhile.
func TestEvents(t *testing.T) {
	runs.On(t, "6.18", runs.Sampled)
	m := harness.New(t)
	source, dest := m.NullBlk("src", harness.NullOptions{MiB: 16}), m.NullBlk("dst", harness.NullOptions{MiB: 16})
	c := m.AddClone(source, dest, m.Missing("meta"), "--no-hydration")
	all := followEvents(c) // of all clones, whatever becomes of their daemons
	last := c.Status().LastEvent
	m.ExpectFailure(m.Try(harness.Command, "wait", c.Name, "--for", "event", "--after", strconv.FormatUint(last, 10), "--timeout", "100ms"), exit.Timeout, "none")
	expect := func(kind string) {
		t.Helper()
		ev := nextEvent(c, last)
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
	c.Setting("rate=50MiB/s")
	expect("settings")
	c.End(syscall.SIGKILL)
	m.ExpectFailure(m.Try(harness.Command, "wait", c.Name, "--for", "event", "--timeout", "30s"), exit.NoAnswer, "dead")
	c.Recover()
	expect("started")
	c.Setting("rate=none")
	expect("settings")
	m.MustRun(harness.Command, "restart", c.Name)
	expect("started")
	m.MustRun(harness.Command, "resume", c.Name)
	expect("settings")
	expect("hydrated")
	c.Del()
}

// followEvents starts `events`, until the test ends; the function gives the next line.
func followEvents(c *harness.Clone) func() (seenEvent, error) {
	c.M.Helper()
	cmd := exec.Command(harness.Command, "events", "-o", "json")
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		c.M.Fatal(err)
	}
	c.M.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	lines := bufio.NewScanner(out)
	return func() (ev seenEvent, err error) {
		if !lines.Scan() {
			return ev, errors.Join(errors.New("no more lines"), lines.Err())
		}
		return ev, json.Unmarshal(lines.Bytes(), &ev)
	}
}
