package main

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/ublk-clone/ublk-clone/internal/control"
	"github.com/ublk-clone/ublk-clone/internal/doctor"
	"github.com/ublk-clone/ublk-clone/internal/exit"
)

// TestDoctorCommand: the real machine is looked at, in text and JSON, and nothing is left in the
// directory of clones.
func TestDoctorCommand(t *testing.T) {
	code, out, errs := command(t, "doctor")
	if !strings.Contains(out, " kernel ") || !strings.Contains(out, "not looked at") || (code == exit.OK) != (errs == "") {
		t.Errorf("exit code %d\n%s%s", code, out, errs)
	}
	again, out, _ := command(t, "doctor -o json")
	var d doctor.Report
	if err := json.Unmarshal([]byte(out), &d); err != nil || d.Schema != control.Schema || d.Kernel == "" || len(d.Checks) < len(doctor.Checks) || again != code {
		t.Errorf("exit code %d, %v\n%s", again, err, out)
	}
	for _, f := range d.Checks {
		if f.Text == "" || f.Level == doctor.LevelProblem && (f.Code == 0 || f.Action == "") {
			t.Errorf("%+v", f)
		}
	}
	if code, _, _ := command(t, "doctor x"); code != exit.Usage {
		t.Errorf("doctor x: exit code %d", code)
	}
}
