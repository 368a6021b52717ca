package plan

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/ublk-clone/ublk-clone/internal/runs"
)

// parse reads a file of one test with that body.
func parse(dir, tag, body string) ([]Test, error) {
	head := ""
	if tag != "" {
		head = "//go:build " + tag + "\n\n"
	}
	return Parse(dir, "x_test.go", head+"package p\n\nfunc TestIt(t *testing.T) {\n"+body+"\n}\n")
}

func TestDeclarationsAreRead(t *testing.T) {
	for _, c := range []struct{ dir, tag, body, want string }{
		{Device, "device", `runs.On(t, "7.3")`, "[7.3] []"},
		{Device, "device", `runs.On(t, "7.3", runs.FourCPUs); t.Log()`, "[7.3] [FourCPUs]"},
		{Device, "device", `runs.On(t, runs.EveryKernel)`, "[6.12 6.18 7.3] []"},
		{Service, "service", `runs.On(t, "6.18", runs.FullOnly)`, "[6.18] [FullOnly]"},
		{"ublk", "device", `runs.On(t, "6.18")`, "[6.18] []"},
		{"ublk", "", `t.Log()`, "[6.12 6.18 7.3] []"}, // runs on the host too

		{Device, "device", ``, "does not declare"},
		{Device, "", `t.Log()`, "does not declare"},
		{Device, "device", `t.Log(); runs.On(t, "7.3")`, "does not declare"},
		{Device, "device", `if runs.On(t, "7.3"); true { }`, "does not declare"},
		{Device, "device", `other.On(t, "7.3")`, "does not declare"},
		{Service, "service", `t.Log()`, "does not declare"},
		{"ublk", "device", `t.Log()`, "does not declare"},
		{"ublk", "device && linux", `t.Log()`, "does not declare"},
		{Device, "device", `runs.On(t)`, "no kernel"},
		{Device, "device", `runs.On(t, "7.4")`, "unknown kernel"},
		{Device, "device", `runs.On(t, "7.3", runs.Kernels)`, "unknown kernel"},
		{Device, "device", `runs.On(t, kernel)`, "can be read"},
	} {
		tests, err := parse(c.dir, c.tag, c.body)
		got := fmt.Sprint(err)
		if err == nil && len(tests) == 1 {
			got = strings.Trim(fmt.Sprint(tests[0].Declaration), "{}")
		}
		if !strings.Contains(got, c.want) {
			t.Errorf("%s, tag %q, %q: %s, not %s", c.dir, c.tag, c.body, got, c.want)
		}
	}
}

func TestWhatIsNoTestNeedsNoDeclaration(t *testing.T) {
	tests, err := Parse(Device, "x_test.go", "package p\n\nfunc TestMain(m *testing.M) {}\nfunc Testify(t *testing.T) {}\nfunc (m *machine) TestX() {}\nfunc helper(t *testing.T) {}\n")
	if err != nil || len(tests) > 0 {
		t.Errorf("%v, %v", tests, err)
	}
}

func TestOneNameMeansOneRun(t *testing.T) {
	a, _ := parse(Device, "device", `runs.On(t, "7.3")`)
	b, _ := parse("ublk", "device", `runs.On(t, "6.12")`)
	if err := sameNames(append(a, b...)); err == nil {
		t.Error("two tests of a name with different declarations are not found")
	}
	if err := sameNames(append(a, a...)); err != nil {
		t.Error(err)
	}
}

// TestMissingTestsAreFound: what no guest has is found, and so is what only the full run has.
func TestMissingTestsAreFound(t *testing.T) {
	for _, c := range []struct {
		dir, wants  string
		short, full bool // whether that run has it
	}{
		{Device, `"7.3"`, true, true},
		{Device, `"7.3", runs.FullOnly`, false, true},
		{Device, `"7.3", runs.OrdinaryClockInFull`, false, true},
		{Device, `"7.3", runs.CountingClock`, true, true},
		{Device, `"6.12", runs.LeapingClock`, true, true},
		{Device, `"6.12", runs.LeapingClock, runs.FastDevices`, true, true},
		{Device, `"6.12", runs.SmallMemory`, true, true},
		{Device, `"6.12", runs.FourCPUs`, true, true},
		{Device, `"6.12", runs.OwnGuestInFull`, true, true},
		{Device, `"6.12", runs.FourSeedsInFull`, true, true},
		{Device, `"6.12", runs.Bench`, true, true}, // by "make bench"
		{Device, `"6.12", runs.BenchQuick`, false, false},
		{Device, `"6.12", runs.CountingClock, runs.FourCPUs`, false, false}, // that clock has one CPU
		{Device, `"6.12", runs.CountingClock, runs.SmallMemory`, false, false},
		{Device, `"6.12", runs.FastDevices`, false, false},
		{Service, `"6.18"`, true, true},
		{Service, `"6.18", runs.FullOnly`, false, true},
		{Service, `"6.18", runs.CountingClock`, false, false},
	} {
		tests, err := parse(c.dir, "x", "runs.On(t, "+c.wants+")")
		if err != nil {
			t.Fatal(err)
		}
		for full, want := range map[bool]bool{false: c.short, true: c.full} {
			if has := len(Missing(tests, Guests(full, tests))) == 0; has != want {
				t.Errorf("%s of %s: found in the run (full: %t): %t, not %t", c.wants, c.dir, full, has, want)
			}
		}
	}
}

// TestSample: the shares have every sampled test once between them.
func TestSample(t *testing.T) {
	var tests []Test
	for _, name := range []string{"TestA", "TestB", "TestC", "TestD", "TestE"} {
		d, err := runs.Declare("6.18", runs.Sampled)
		if err != nil {
			t.Fatal(err)
		}
		tests = append(tests, Test{Device, name, d})
	}
	times := map[string]int{}
	for share := range runs.Shares {
		part := Sample(tests, share)
		if len(part) == 0 || len(part) > 2 {
			t.Errorf("share %d has %d of %d tests", share, len(part), len(tests))
		}
		for _, test := range part {
			times[test.Name]++
		}
	}
	for _, test := range tests {
		if times[test.Name] != 1 {
			t.Errorf("%s is in %d shares", test.Name, times[test.Name])
		}
	}
}

// TestSampleLayer: a test that is to run with a layer does so in one of the shares, of which none
// loses what it has without one.
func TestSampleLayer(t *testing.T) {
	var tests []Test
	for name, wants := range map[string][]runs.Want{
		"TestA": {"6.18", runs.Layered}, "TestB": {"7.3", runs.Layered, runs.Sampled}, "TestC": {"6.12", runs.Sampled}, "TestD": {"6.12"}, "TestE": {"6.12", "7.3", runs.Layered, runs.Sampled},
	} {
		d, err := runs.Declare(wants...)
		if err != nil {
			t.Fatal(err)
		}
		tests = append(tests, Test{Device, name, d})
	}
	with, without := map[string]int{}, map[string]int{}
	for share := range runs.Shares {
		for _, g := range Guests(false, Sample(tests, share)) {
			for _, name := range g.Tests {
				if slices.Contains(g.Settings, "DM=on") {
					with[name]++
				} else {
					without[name]++
				}
			}
		}
	}
	if want := map[string]int{"TestA": 1, "TestB": 1, "TestE": 1}; !maps.Equal(with, want) {
		t.Errorf("with a layer: %v, expected %v", with, want)
	}
	if want := map[string]int{"TestA": 4, "TestB": 1, "TestC": 1, "TestD": 4, "TestE": 2}; !maps.Equal(without, want) {
		t.Errorf("without a layer: %v, expected %v", without, want)
	}
}

func TestGuestsOfARun(t *testing.T) {
	var tests []Test
	for name, wants := range map[string][]runs.Want{
		"TestA": {"7.3"}, "TestB": {"6.12", runs.FourSeedsInFull}, "TestC": {"6.18", runs.OwnGuestInFull}, "TestD": {"7.3", runs.CountingClock},
		"TestE": {"6.12", runs.Layered}, "TestF": {"6.12", runs.Layered, runs.OwnGuestInFull},
	} {
		d, err := runs.Declare(wants...)
		if err != nil {
			t.Fatal(err)
		}
		tests = append(tests, Test{Device, name, d})
	}
	short := map[string]string{}
	for _, g := range Guests(false, tests) {
		short[g.Log] = Expression(g.Tests)
	}
	for log, want := range map[string]string{"device-6.12": "^(TestB|TestE|TestF)$", "device-6.18": "^(TestC)$", "device-7.3-layer": "^(TestE|TestF)$", "device-6.18-layer": "", "device-7.3": "^(TestA)$", "device-7.3-timed": "^(TestD)$"} {
		if short[log] != want {
			t.Errorf("short run: %s has %q, not %q", log, short[log], want)
		}
	}
	full := map[string]string{}
	for _, g := range Guests(true, tests) {
		if full[g.Log] != "" {
			t.Errorf("full run: two guests have the log %s", g.Log)
		}
		full[g.Log] = Expression(g.Tests) + strings.Join(g.Settings, " ")
	}
	for log, want := range map[string]string{
		"device-6.12": "^(TestA|TestE)$", "device-6.18-layer": "^(TestE)$DM=on", "device-7.3-layer-TestF": "^(TestF)$DM=on", "device-6.12-TestC": "^(TestC)$", "device-7.3-TestB-4": "^(TestB)$SEED=4", "device-6.18-copied": "^(TestA|TestB|TestE)$ZERO_COPY=off",
		"device-6.18-timed": "^(TestD)$TIMED=1",
	} {
		if full[log] != want {
			t.Errorf("full run: %s has %q, not %q", log, full[log], want)
		}
	}
}
