package main

import (
	"bytes"
	"encoding/json"
	"os"
	"strings"
	"testing"

	"github.com/ublk-clone/ublk-clone/internal/control"
	"github.com/ublk-clone/ublk-clone/internal/daemon"
	"github.com/ublk-clone/ublk-clone/internal/definition"
	"github.com/ublk-clone/ublk-clone/internal/etc"
	"github.com/ublk-clone/ublk-clone/internal/exit"
)

// TestMain ends a test binary that add has started as a daemon: it would run the tests again.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == daemon.DaemonCommand {
		os.Exit(exit.Other)
	}
	os.Exit(m.Run())
}

// command runs a command line over an empty run directory.
func command(t *testing.T, line string) (code int, out, errs string) {
	t.Helper()
	var o, e bytes.Buffer
	p := &program{out: &o, errs: &e, dir: control.Dir(t.TempDir()), defined: etc.Dir(t.TempDir())}
	code = p.run(append([]string{"ublk-clone"}, strings.Fields(line)...))
	return code, o.String(), e.String()
}

func TestCommandLines(t *testing.T) {
	const parts = " --source /s --dest /d --metadata /m"
	for _, c := range []struct {
		line string
		code int
		says string // on either output
	}{
		{"", exit.OK, "COMMANDS"},
		{"help", exit.OK, "EXIT CODES"},
		{"add --help", exit.OK, "--source"},
		{"version", exit.OK, "ublk-clone"},
		{"--version", exit.OK, "(go"},
		{"list", exit.OK, "NAME"},
		{"ls", exit.OK, "NAME"},
		{"status", exit.OK, "NAME"},
		{"nonsense", exit.Usage, `unknown command "nonsense"`},
		{"metadata nonsense", exit.Usage, "nonsense"},
		{"list --nonsense", exit.Usage, "nonsense"},
		{"list x", exit.Usage, "unexpected argument"},
		{"list -o yaml", exit.Usage, "it must be json"},
		{"status x", exit.NoClone, "there is none of that name"},
		{"show x", exit.NoClone, "ublk-clone list"},
		{"del", exit.Usage, "needs NAME"},
		{"del x", exit.NoClone, "none of that name"},
		{"del x --wait soon", exit.Usage, "not a time"},
		{"pause x", exit.NoClone, "x"},
		{"recover x", exit.NoClone, "x"},
		{"recover x --all", exit.Usage, "unexpected argument"},
		{"restart", exit.Usage, "needs NAME"},
		{"restart x", exit.NoClone, "x"},
		{"restart --all", exit.OK, ""},
		{"resume ../x", exit.Usage, "letters"},
		{"wait x --timeout -1s", exit.Usage, "--timeout"},
		{"watch x --progress loud", exit.Usage, "plain"},
		{"message x", exit.Usage, "MESSAGE"},
		{"message x enable", exit.Usage, definition.MessageList},
		{"message x enable_hydration", exit.NoClone, "x"},
		{"add", exit.Usage, "NAME"},
		{"add x", exit.Usage, "--source is missing"},
		{"add x" + parts + " --region-size 0", exit.Usage, "--region-size 0: it must be a power of two from 4KiB to 1GiB"},
		{"add x" + parts + " --region-size 3s", exit.Usage, "--region-size 3s: it must be a power of two"},
		{"add x" + parts + " --region-size 2KiB", exit.Usage, "--region-size 2KiB: it must be a power of two"},
		{"add x" + parts + " --region-size 2GiB", exit.Usage, "--region-size 2GiB: it must be a power of two"},
		{"add x" + parts + " --region-size 5000", exit.Usage, "--region-size 5000: it must be a power of two"},
		{"add x" + parts + " --region-size abc", exit.Usage, `"abc"`},
		{"add x" + parts + " --region-size 4k", exit.Usage, "unknown unit"},
		{"add x --dest /d --metadata /m --source", exit.Usage, "source"},
		{"--region-size 5000 add x" + parts, exit.Usage, "--region-size 5000"},
		{"add --queues x y" + parts, exit.Usage, "queues"},
		{"add --zero-copy perhaps y" + parts, exit.Usage, "--zero-copy perhaps: it must be on or off"},
		{"add x y" + parts, exit.Usage, `unexpected argument "y"`},
		{"add x" + parts + " --sauce /s", exit.Usage, "sauce"},
		{"add x" + parts + " --queues 0", exit.Usage, "--queues"},
		{"add x" + parts + " --create --open", exit.Usage, "exclude"},
		{"add x" + parts + " --wait never", exit.Usage, "ready or hydrated"},
		{"add x" + parts + " --rate fast", exit.Usage, `--rate: "fast" is not valid: it must be SIZE a second, or none`},
		{"add x" + parts + " --min-rate -1", exit.Usage, "--min-rate"},
		{"add x" + parts + " --retries 0", exit.Usage, "1 to 1000"},
		{"add x" + parts + " --read-through=maybe", exit.Usage, "on or off"},
		{"add x" + parts + " --hydration-batch-size 0", exit.Usage, "--hydration-batch-size"},
		{"add x" + parts + " --hydration-threshold -1", exit.Usage, "--hydration-threshold"},
		{"add x" + parts + " --table 0", exit.Usage, "--table and --source exclude each other"},
		{"add x --table 0 --no-hydration", exit.Usage, "--table and --no-hydration"},
		{"add x --table 1", exit.Usage, `word 1, the start "1": it must be 0`},
		{"add x --table=", exit.Usage, "word 1, the start, is missing"},
		{"set", exit.Usage, "NAME"},
		{"set x", exit.Usage, "read-through (on or off)"},
		{"set x speed=1", exit.Usage, "Keys are: rate (SIZE a second, or none)"},
		{"set ../x rate=1", exit.Usage, "letters"},
		{"set x rate=1 retries=0", exit.Usage, "Nothing was changed"},
		{"set x rate=1", exit.NoClone, "x"},
		{"events x", exit.NoClone, "x"},
		{"events x -o yaml", exit.Usage, "it must be json"},
		{"wait x --for rain", exit.Usage, "hydrated, finished or event"},
		{"wait x --for event --after x", exit.Usage, "--after x"},
		{"wait x --after 1", exit.Usage, "--for event"},
		{"wait x --for event", exit.NoClone, "x"},
		{"metadata check /nonexistent/file", exit.Metadata, "/nonexistent/file"},
	} {
		code, out, errs := command(t, c.line)
		if code != c.code || !strings.Contains(out+errs, c.says) {
			t.Errorf("%q: exit code %d, want %d saying %q\nout: %.400s\nerr: %.400s", c.line, code, c.code, c.says, out, errs)
		}
		if code != exit.OK && !strings.HasPrefix(errs, "ublk-clone: ") {
			t.Errorf("%q: the error is %q", c.line, errs)
		}
	}
}

func TestErrorsAsJSON(t *testing.T) {
	for _, line := range []string{"status x -o json", "-o json status x", "status --output=json x"} {
		code, _, errs := command(t, line)
		var got struct {
			Schema string
			Error  control.WireError
		}
		if err := json.Unmarshal([]byte(errs), &got); err != nil || code != exit.NoClone || got.Schema != control.Schema || got.Error.Code != exit.NoClone {
			t.Errorf("%q: exit code %d, %q (%v)", line, code, errs, err)
		}
	}
}

func TestListAsJSONIsAnEmptyList(t *testing.T) {
	code, out, _ := command(t, "list -o json")
	var got report
	if err := json.Unmarshal([]byte(out), &got); err != nil || code != 0 || got.Clones == nil || len(got.Clones) != 0 {
		t.Errorf("exit code %d, %q, %v", code, out, err)
	}
}

// released gives a lock back.
func released(t *testing.T, lock *control.NameLock) {
	t.Helper()
	if err := lock.Release(); err != nil {
		t.Error(err)
	}
}
