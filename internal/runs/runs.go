// Package runs lets a test that needs a guest say where it runs: on which kernels, on which clock,
// and in what guest. The first statement of each such test is
//
//	On(t, "7.3")                       on one kernel in a short run
//	On(t, "6.12", FourCPUs)            in a guest with four CPUs
//	On(t, EveryKernel)                 on each of them in a short run too
//	On(t, "6.18", CountingClock)       where the clock counts instructions
//	On(t, "6.18", Sampled)             in one of four short runs, as it takes long
//	On(t, "6.18", Layered)             once more with a layer, in one of four short runs
//
// The kernels are those of the short run, "make test". The full run, "make test-full", has every
// test on every kernel; only what runs on the leaping clock stays on the kernels that it names. A
// short run has a quarter of the sampled tests, its share, which changes with the commit.
//
// How to choose: a test whose outcome depends on the kernel (what the driver can do, recovery, who
// is reported to use a device) runs on every kernel on which the outcome may differ. Every other
// test names one kernel, so that each kernel has about a third of the work.
//
// Package plan reads these declarations from the source and makes the list of guests of both runs
// (scripts/test). On compares them with the guest in which the test finds itself.
package runs

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"
)

// Kernels are the kernels of the guests, the oldest first.
var Kernels = []string{"6.12", "6.18", "7.3"}

// Want is one thing that a test asks for: a kernel by its version, or one of the constants.
type Want string

// The kernels of a short run, and the clocks. Without a clock a test wants the ordinary one.
const (
	EveryKernel Want = "EveryKernel"

	// OrdinaryClock is the host's.
	OrdinaryClock Want = "OrdinaryClock"
	// CountingClock advances by 1 ns an instruction, and idle time passes: limits in seconds mean
	// something on it, as no neighbour moves it.
	CountingClock Want = "CountingClock"
	// LeapingClock counts too, and skips idle time: for what is counted or measured, with disks in
	// step.
	LeapingClock Want = "LeapingClock"
	// OrdinaryClockInFull is the ordinary clock in a full run only.
	OrdinaryClockInFull Want = "OrdinaryClockInFull"
)

// What else a test may ask for.
const (
	Layered         Want = "Layered"         // once more with --dm (DM=on), so that what is hydrated is led straight to the destination
	Sampled         Want = "Sampled"         // it takes long (12 s in a guest that has two CPUs to itself): not in every short run
	FullOnly        Want = "FullOnly"        // it takes too long for a short run
	OwnGuestInFull  Want = "OwnGuestInFull"  // its full counts take so long that a full run gives it a guest of its own
	FourSeedsInFull Want = "FourSeedsInFull" // a full run gives it a guest of its own for each of four seeds
	FourCPUs        Want = "FourCPUs"        // a guest with four CPUs
	SmallMemory     Want = "SmallMemory"     // the guest of scripts/memory-pressure
	FastDevices     Want = "FastDevices"     // on the leaping clock: devices that are not slowed down (BENCH_S=1)
	Bench           Want = "Bench"           // a measurement of "make bench", which neither run has
	BenchQuick      Want = "BenchQuick"      // with Bench: one of "make bench-quick" too
)

// Declaration is what a test has asked for.
type Declaration struct {
	kernels []string
	wants   []Want
}

// options are the wants that are not kernels.
var options = []Want{OrdinaryClock, CountingClock, LeapingClock, OrdinaryClockInFull, Layered, Sampled, FullOnly, OwnGuestInFull, FourSeedsInFull,
	FourCPUs, SmallMemory, FastDevices, Bench, BenchQuick}

// Declare understands the wants of a test.
func Declare(wants ...Want) (Declaration, error) {
	var d Declaration
	for _, want := range wants {
		switch {
		case want == EveryKernel:
			d.kernels = append(d.kernels, Kernels...)
		case slices.Contains(Kernels, string(want)):
			d.kernels = append(d.kernels, string(want))
		case slices.Contains(options, want):
			d.wants = append(d.wants, want)
		default:
			return d, fmt.Errorf("unknown kernel or option %q: the kernels are %s", want, strings.Join(Kernels, ", "))
		}
	}
	if len(d.kernels) == 0 {
		return d, errors.New("no kernel is named")
	}
	if slices.Sort(d.kernels); len(slices.Compact(slices.Clone(d.kernels))) != len(d.kernels) {
		return d, errors.New("a kernel is named twice")
	}
	return d, nil
}

// Has tells whether the test has asked for that.
func (d Declaration) Has(want Want) bool { return slices.Contains(d.wants, want) }

// Shares is how many short runs have all sampled tests between them.
const Shares = 4

// Sample is what a short run with that share has of the nth sampled test: each of its kernels in
// one share. Another test it has as it is.
func (d Declaration) Sample(nth, share int) (Declaration, bool) {
	at := (nth + share) % Shares
	switch {
	case !d.Has(Sampled):
		return d, true
	case at >= len(d.kernels):
		return d, false
	}
	d.kernels = d.kernels[at:][:1]
	return d, true
}

// SampleLayer is what a short run with that share has of the nth test that is to run with a layer too:
// in one share it has that run, and the test itself if it is kept.
func (d Declaration) SampleLayer(nth, share int, kept bool) (Declaration, bool) {
	if !d.Has(Layered) {
		return d, kept
	}
	with := (nth+share)%Shares == 0
	if !with {
		d.wants = slices.DeleteFunc(slices.Clone(d.wants), func(w Want) bool { return w == Layered })
	}
	if !kept {
		d.kernels = nil
	}
	return d, kept || with
}

// InLayered tells whether a run has the test with a layer on that kernel.
func (d Declaration) InLayered(full bool, kernel string) bool {
	return d.Has(Layered) && (full && slices.Contains(layeredInFull, kernel) || kernel == layeredKernel)
}

// The kernels of tests with a layer. Before 6.18 the driver cannot say how memory must be aligned for
// the destination, and next to nothing is led there.
const layeredKernel = "7.3"

var layeredInFull = []string{"6.18", "7.3"}

// clockNamed tells whether the test names a clock, or has one of itself.
func (d Declaration) clockNamed() bool {
	return slices.ContainsFunc([]Want{OrdinaryClock, CountingClock, LeapingClock, OrdinaryClockInFull, Bench, BenchQuick}, d.Has)
}

// In tells whether a run has the test on that kernel and clock.
func (d Declaration) In(full bool, kernel string, clock Want) bool {
	if d.Has(FullOnly) && !full {
		return false
	}
	if !slices.Contains(d.kernels, kernel) && (!full || clock == LeapingClock) {
		return false
	}
	if clock == OrdinaryClock && (!d.clockNamed() || full && d.Has(OrdinaryClockInFull)) {
		return true
	}
	return d.Has(clock)
}

// Guest is where a test finds itself.
type Guest struct {
	Full   bool // in a full run
	Kernel string
	Clock  Want
	CPUs   int
	Layer  bool // DM=on
}

// Check tells what is not as the test has declared.
func (d Declaration) Check(g Guest) error {
	switch {
	case g.Layer && !d.InLayered(g.Full, g.Kernel):
		return fmt.Errorf("declared for %v, %v; this is kernel %s with a layer", d.kernels, d.wants, g.Kernel)
	case !g.Layer && !d.In(g.Full, g.Kernel, g.Clock):
		return fmt.Errorf("declared for %v, %v; this is kernel %s, %s", d.kernels, d.wants, g.Kernel, g.Clock)
	case d.Has(FourCPUs) && g.CPUs < 4:
		return fmt.Errorf("declared for four CPUs, there are %d", g.CPUs)
	}
	return nil
}

// On declares where a test runs. In a guest of a planned run (PLAN, by scripts/test) it fails the
// test if it is not there; somebody who picks tests by hand (RUN) may run them anywhere.
func On(t *testing.T, wants ...Want) {
	t.Helper()
	d, err := Declare(wants...)
	if err != nil {
		t.Fatal(err)
	}
	plan := os.Getenv("PLAN")
	if plan == "" {
		return
	}
	g := Guest{Full: plan == "full", Kernel: kernel(), Clock: clock(), CPUs: runtime.NumCPU(), Layer: Layer()}
	if err := d.Check(g); err != nil {
		t.Fatalf("in the wrong guest: %v", err)
	}
}

// Layer says that this is a run in which clones get a layer.
func Layer() bool { return os.Getenv("DM") == "on" }

// kernel is the version of the guest's kernel. A test that drives guests from the host has it in
// KERNEL.
func kernel() string {
	release := os.Getenv("KERNEL")
	if release == "" {
		b, err := os.ReadFile("/proc/sys/kernel/osrelease")
		if err != nil {
			return err.Error()
		}
		release = string(b)
	}
	for _, k := range Kernels {
		if rest, ok := strings.CutPrefix(release, k); ok && (rest == "" || rest[0] < '0' || rest[0] > '9') {
			return k
		}
	}
	return strings.TrimSpace(release)
}

// clock is the guest's, by what scripts/device-tests was asked for.
func clock() Want {
	switch {
	case os.Getenv("BENCH") == "1":
		return LeapingClock
	case os.Getenv("TIMED") == "1":
		return CountingClock
	}
	return OrdinaryClock
}
