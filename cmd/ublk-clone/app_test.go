package main

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"

	"github.com/ublk-clone/ublk-clone/internal/exit"
)

// command runs a command line over an empty run folder.
func command(t *testing.T, line string) (code int, out, errs string) {
	t.Helper()
	var o, e bytes.Buffer
	p := &program{out: &o, errs: &e, dir: runDir(t.TempDir())}
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
		{"list", exit.OK, "NAME"},
		{"ls", exit.OK, "NAME"},
		{"status", exit.OK, "NAME"},
		{"nonsense", exit.Usage, `unknown command "nonsense"`},
		{"metadata nonsense", exit.Usage, "nonsense"},
		{"list --nonsense", exit.Usage, "nonsense"},
		{"list x", exit.Usage, "too much"},
		{"list -o yaml", exit.Usage, "json is possible"},
		{"status x", exit.NoClone, "there is none of that name"},
		{"show x", exit.NoClone, "ublk-clone list"},
		{"del", exit.Usage, "needs NAME"},
		{"del x", exit.NoClone, "none of that name"},
		{"del x --wait soon", exit.Usage, "not a time"},
		{"pause x", exit.NoClone, "x"},
		{"resume ../x", exit.Usage, "letters"},
		{"wait x --timeout -1s", exit.Usage, "--timeout"},
		{"watch x --progress loud", exit.Usage, "plain"},
		{"message x", exit.Usage, "MESSAGE"},
		{"message x enable", exit.Usage, messageList},
		{"message x enable_hydration", exit.NoClone, "x"},
		{"add", exit.Usage, "NAME"},
		{"add x", exit.Usage, "--source is missing"},
		{"add x" + parts + " --region-size 5000", exit.Usage, "power of two"},
		{"add x" + parts + " --region-size 4k", exit.Usage, "unknown unit"},
		{"add x" + parts + " --queues 0", exit.Usage, "--queues"},
		{"add x" + parts + " --create --open", exit.Usage, "exclude"},
		{"add x" + parts + " --wait never", exit.Usage, "ready or hydrated"},
		{"add x" + parts + " --rate 1M", exit.Usage, "rate"},
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
			Error  wireError
		}
		if err := json.Unmarshal([]byte(errs), &got); err != nil || code != exit.NoClone || got.Schema != schema || got.Error.Code != exit.NoClone {
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
