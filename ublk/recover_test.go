package ublk

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// statLine is a process's stat with the given state, flags and signals pending.
func statLine(name, state, flags, pending string) string {
	return "4242 (" + name + ") " + state + " 1 4242 4242 0 -1 " + flags +
		" 1 0 0 0 5 6 0 0 20 0 9 0 100 1000 200 18446744073709551615 1 1 0 0 0 " + pending + " 0 2143420159 0 0 0 17 1 0 0"
}

func TestEnding(t *testing.T) {
	for _, c := range []struct {
		what, stat string
		want       bool
	}{
		{"asleep", statLine("server", "S", "4194560", "0"), false},
		{"with other signals", statLine("server", "R", "4194560", "4194304"), false},
		{"with a strange name", statLine("a) Z 1 ) (b", "D", "4194560", "0"), false},
		{"a zombie", statLine("server", "Z", "4194560", "0"), true},
		{"dead", statLine("server", "X", "4194560", "0"), true},
		{"on its way out", statLine("server", "R", "4194564", "0"), true},
		{"killed", statLine("server", "D", "4194560", "256"), true},
		{"of an unknown form", "4242 (server) S 1", true},
		{"of no numbers", statLine("server", "S", "x", "0"), true},
	} {
		if got := ending(c.stat); got != c.want {
			t.Errorf("a process %s: ending %v, want %v", c.what, got, c.want)
		}
	}
}

// TestProcessLives asks the kernel itself: for this process, for one that was killed and not waited
// for, and for one that is gone.
func TestProcessLives(t *testing.T) {
	if !processLives(os.Getpid()) {
		t.Error("this process is said to be ending")
	}
	cmd := exec.Command("sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if !processLives(cmd.Process.Pid) {
		t.Error("a process that sleeps is said to be ending")
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	for limit := time.Now().Add(10 * time.Second); processLives(cmd.Process.Pid); {
		if time.Now().After(limit) {
			t.Fatal("a process that was killed is said to live")
		}
	}
	_ = cmd.Wait()
	if processLives(cmd.Process.Pid) {
		t.Error("a process that is gone is said to live")
	}
}

func TestRefusal(t *testing.T) {
	const cookie, recovery = 7, flagCmdIoctlEncode | flagUserRecovery | flagUserRecoveryReissue
	for _, c := range []struct {
		what    string
		private uint64
		flags   uint64
		state   State
		want    error
	}{
		{"quiesced", cookie, recovery, StateQuiesced, nil},
		{"live", cookie, recovery, StateLive, nil},
		{"with what drivers set by themselves", cookie, recovery | 0x26042, StateQuiesced, nil},
		{"of somebody else", cookie + 1, recovery, StateQuiesced, ErrForeign},
		{"of somebody else, without recovery", cookie + 1, 0x42, StateDead, ErrForeign},
		{"without recovery", cookie, 0x42, StateLive, ErrUnrecoverable},
		{"stopped", cookie, recovery, StateDead, ErrUnrecoverable},
		{"with user copy", cookie, recovery | flagUserCopy, StateQuiesced, ErrUnrecoverable},
		{"with registered buffers", cookie, recovery | flagAutoBufReg, StateQuiesced, ErrUnrecoverable},
	} {
		info := Info{Private: c.private, Features: decodeFeatures(c.flags), State: c.state}
		if err := info.refusal(cookie); !errors.Is(err, c.want) {
			t.Errorf("a device %s: %v, want %v", c.what, err, c.want)
		}
	}
}

func TestServed(t *testing.T) {
	for _, c := range []struct {
		state State
		pid   int
		want  bool
	}{
		{StateLive, os.Getpid(), true},
		{StateLive, -1, false},
		{StateLive, 0, false},
		{StateQuiesced, os.Getpid(), false},
		{StateDead, os.Getpid(), false},
	} {
		if got := (Info{State: c.state, ServerPID: c.pid}).Served(); got != c.want {
			t.Errorf("%v, process %d: served %v, want %v", c.state, c.pid, got, c.want)
		}
	}
}

func TestObstacle(t *testing.T) {
	err := &TimeoutError{Command: "START_USER_RECOVERY", Device: 3, After: time.Minute,
		Waited: Info{ID: 3, State: StateQuiesced, ServerPID: 42}.obstacle()}
	want := "ublk command START_USER_RECOVERY on device 3: waited 1m0s for /dev/ublkc3 to be closed, which process 42 or somebody else has open"
	if err.Error() != want {
		t.Errorf("%q, want %q", err, want)
	}
	if got := (Info{State: StateLive, ServerPID: 42}).obstacle(); !strings.Contains(got, "process 42 is dead") {
		t.Errorf("of a live device: %q", got)
	}
}

// TestRefusedCommands: what the driver answers to recovery's commands comes back, from a device
// that knows none.
func TestRefusedCommands(t *testing.T) {
	c, ctx := zeroControl(t), context.Background()
	for name, err := range map[string]error{
		"GET_DEV_INFO2":       func() error { _, err := c.GetDevInfo(ctx, 5); return err }(),
		"START_USER_RECOVERY": c.StartRecovery(ctx, 5), "END_USER_RECOVERY": c.EndRecovery(ctx, 5),
	} {
		var refused *CommandError
		if !errors.As(err, &refused) || refused.Command != name || refused.Device != 5 {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := c.Quiesce(ctx, 5, time.Second); !errors.Is(err, ErrNotSupported) {
		t.Errorf("QUIESCE_DEV: %v, want a FeatureError", err)
	}
	var refused *CommandError
	if _, err := Recover(c, 5, Options{}); !errors.As(err, &refused) || refused.Command != "GET_DEV_INFO2" {
		t.Errorf("recover: %v", err)
	}
}
