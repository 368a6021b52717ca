package tidy

import (
	"testing"

	"github.com/ublk-clone/ublk-clone/internal/runs/plan"
)

// TestEveryTestRunsSomewhere: each device and service test declares where it runs, and "make
// test-full" has it there. That this check can fail is tested in internal/runs/plan.
func TestEveryTestRunsSomewhere(t *testing.T) {
	tests, err := plan.Load(root)
	if err != nil {
		t.Fatal(err)
	}
	short, full := plan.Guests(false, tests), plan.Guests(true, tests)
	for _, name := range plan.Missing(tests, full) {
		t.Errorf("no guest of make test-full has %s", name)
	}
	for _, name := range plan.Missing(tests, append(short, full...)) {
		t.Errorf("neither make test nor make test-full has %s", name)
	}
	if len(tests) < 200 || len(short) < 8 {
		t.Errorf("only %d tests and %d guests were looked at", len(tests), len(short))
	}
}
