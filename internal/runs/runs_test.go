package runs

import (
	"strings"
	"testing"
)

// declared is a declaration that must be understood.
func declared(t *testing.T, wants ...Want) Declaration {
	t.Helper()
	d, err := Declare(wants...)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func TestDeclarationsThatAreRefused(t *testing.T) {
	for _, c := range []struct {
		wants []Want
		says  string
	}{
		{nil, "no kernel"},
		{[]Want{FullOnly}, "no kernel"},
		{[]Want{"7.4"}, `unknown kernel or option "7.4"`},
		{[]Want{"7.3", "CountingClok"}, "unknown kernel or option"},
		{[]Want{"7.3", "7.3"}, "twice"},
		{[]Want{EveryKernel, "6.12"}, "twice"},
	} {
		if _, err := Declare(c.wants...); err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%v: %v, not %q", c.wants, err, c.says)
		}
	}
}

func TestWhichRunHasATest(t *testing.T) {
	for _, c := range []struct {
		wants       []Want
		short, full string // kernels and clocks
	}{
		{[]Want{"7.3"}, "7.3 OrdinaryClock", "6.12 OrdinaryClock, 6.18 OrdinaryClock, 7.3 OrdinaryClock"},
		{[]Want{"6.12", "6.18"}, "6.12 OrdinaryClock, 6.18 OrdinaryClock", "6.12 OrdinaryClock, 6.18 OrdinaryClock, 7.3 OrdinaryClock"},
		{[]Want{"6.18", FullOnly}, "", "6.12 OrdinaryClock, 6.18 OrdinaryClock, 7.3 OrdinaryClock"},
		{[]Want{"6.18", CountingClock}, "6.18 CountingClock", "6.12 CountingClock, 6.18 CountingClock, 7.3 CountingClock"},
		{[]Want{"6.18", CountingClock, OrdinaryClockInFull}, "6.18 CountingClock",
			"6.12 OrdinaryClock, 6.12 CountingClock, 6.18 OrdinaryClock, 6.18 CountingClock, 7.3 OrdinaryClock, 7.3 CountingClock"},
		{[]Want{"6.18", OrdinaryClock, LeapingClock}, "6.18 OrdinaryClock, 6.18 LeapingClock",
			"6.12 OrdinaryClock, 6.18 OrdinaryClock, 6.18 LeapingClock, 7.3 OrdinaryClock"},
		{[]Want{"6.18", Bench}, "", ""},
	} {
		d := declared(t, c.wants...)
		if short := where(d, false); short != c.short {
			t.Errorf("%v: a short run has it on %q, not %q", c.wants, short, c.short)
		}
		if full := where(d, true); full != c.full {
			t.Errorf("%v: a full run has it on %q, not %q", c.wants, full, c.full)
		}
	}
}

// where names the kernels and clocks on which a run has a test.
func where(d Declaration, full bool) string {
	var found []string
	for _, kernel := range Kernels {
		for _, clock := range []Want{OrdinaryClock, CountingClock, LeapingClock} {
			if d.In(full, kernel, clock) {
				found = append(found, kernel+" "+string(clock))
			}
		}
	}
	return strings.Join(found, ", ")
}

func TestWrongGuestIsFound(t *testing.T) {
	right := Guest{Kernel: "7.3", Clock: OrdinaryClock, CPUs: 4}
	d := declared(t, "7.3", FourCPUs)
	if err := d.Check(right); err != nil {
		t.Error(err)
	}
	for name, change := range map[string]func(*Guest){
		"another kernel": func(g *Guest) { g.Kernel = "6.12" },
		"another clock":  func(g *Guest) { g.Clock = CountingClock },
		"too few CPUs":   func(g *Guest) { g.CPUs = 2 },
	} {
		wrong := right
		change(&wrong)
		if err := d.Check(wrong); err == nil {
			t.Errorf("%s is not found", name)
		}
	}
	layer := Guest{Kernel: "7.3", Clock: OrdinaryClock, CPUs: 4, Layer: true}
	if d.Check(layer) == nil {
		t.Error("a guest with a layer is not found")
	}
	if err := declared(t, "6.12", Layered).Check(layer); err != nil {
		t.Errorf("with a layer: %v", err)
	}
	full := Guest{Full: true, Kernel: "6.12", Clock: OrdinaryClock, CPUs: 4}
	if err := d.Check(full); err != nil {
		t.Errorf("a full run has it everywhere: %v", err)
	}
}

func TestKernelOfARelease(t *testing.T) {
	for release, want := range map[string]string{"6.12": "6.12", "6.18.9+deb13-cloud-amd64": "6.18", "7.3~rc1\n": "7.3", "6.120.1": "6.120.1", "7.30": "7.30"} {
		t.Setenv("KERNEL", release)
		if got := kernel(); got != want {
			t.Errorf("%q is kernel %q, not %q", release, got, want)
		}
	}
}

// TestShares: each sampled test is in one share on each of its kernels, and others are in all.
func TestShares(t *testing.T) {
	for _, c := range []struct {
		wants []Want
		times int // on each kernel that is named, in all shares together
	}{
		{[]Want{"6.18"}, Shares},
		{[]Want{EveryKernel}, Shares},
		{[]Want{"6.18", Sampled}, 1},
		{[]Want{EveryKernel, Sampled}, 1},
	} {
		d := declared(t, c.wants...)
		for nth := range 2 * Shares {
			times := map[string]int{}
			for share := range Shares {
				if part, ok := d.Sample(nth, share); ok {
					for _, k := range part.kernels {
						times[k]++
					}
				}
			}
			for _, k := range d.kernels {
				if times[k] != c.times {
					t.Errorf("%v, test %d: %d times on %s, not %d", c.wants, nth, times[k], k, c.times)
				}
			}
		}
	}
}
