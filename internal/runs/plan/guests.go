package plan

import (
	"fmt"
	"slices"

	"github.com/ublk-clone/ublk-clone/internal/runs"
)

// Guest is a step of a run that boots a guest (or several, one after the other), with the tests
// that it has.
type Guest struct {
	Script   string // in scripts
	Kernel   string
	Title    string
	Log      string   // in build/results, without its ending
	Settings []string // of the script, NAME=VALUE
	Tests    []string // none: a script without tests, whose log does not count
	Alone    bool     // it needs all CPUs
}

// seeds are those of FourSeedsInFull.
var seeds = []string{"1", "2", "3", "4"}

// copying are the kernels on which clones can do without copies, and which get a run with copies
// too.
var copying = []string{"6.18", "7.3"}

// demoKernel is the kernel of the demo in a short run.
const demoKernel = "6.12"

// planner collects the guests of one run.
type planner struct {
	full   bool
	tests  []Test
	guests []Guest
}

// Sample leaves out what a short run with that share has not.
func Sample(tests []Test, share int) (sampled []Test) {
	names := Names(tests, func(t Test) bool { return t.Has(runs.Sampled) })
	layered := Names(tests, func(t Test) bool { return t.Has(runs.Layered) })
	for _, t := range tests {
		nth, _ := slices.BinarySearch(names, t.Name)
		d, ok := t.Sample(nth, share)
		nth, _ = slices.BinarySearch(layered, t.Name)
		d, ok = d.SampleLayer(nth, share, ok)
		if t.Declaration = d; ok {
			sampled = append(sampled, t)
		}
	}
	return sampled
}

// Guests are all guests of a run, what takes longest first.
func Guests(full bool, tests []Test) []Guest {
	p := &planner{full: full, tests: tests}
	for _, k := range runs.Kernels {
		p.ordinary(k)
	}
	for _, k := range runs.Kernels {
		p.leaping(k)
	}
	for _, k := range runs.Kernels {
		p.add(Guest{Script: "service-tests", Kernel: k, Title: "service on " + k, Log: "service-" + k},
			func(t Test) bool { return t.Dir == Service && t.In(full, k, runs.OrdinaryClock) })
	}
	for _, k := range runs.Kernels {
		p.add(Guest{Script: "device-tests", Kernel: k, Title: "promises in seconds on " + k, Log: "device-" + k + "-timed", Settings: []string{"TIMED=1"}},
			p.plain(k, runs.CountingClock))
	}
	for _, k := range runs.Kernels {
		p.add(Guest{Script: "memory-pressure", Kernel: k, Title: "memory pressure on " + k, Log: "pressure-" + k},
			func(t Test) bool { return t.Has(runs.SmallMemory) && p.inGuest(t, k, runs.OrdinaryClock) })
	}
	for _, k := range runs.Kernels {
		if full || k == demoKernel {
			p.guests = append(p.guests, Guest{Script: "demo", Kernel: k, Title: "demo on " + k, Log: "demo-" + k, Settings: []string{"HERE=0"}})
		}
	}
	for _, k := range runs.Kernels {
		p.layered(k)
	}
	for _, k := range runs.Kernels {
		p.fourCPUs(k)
	}
	// What needs all CPUs comes first, so that the rest can be run side by side to the end.
	slices.SortStableFunc(p.guests, func(a, b Guest) int { return rank(a) - rank(b) })
	return p.guests
}

func rank(g Guest) int {
	if g.Alone {
		return 0
	}
	return 1
}

// add adds a guest with the tests that satisfy the condition, unless there are none.
func (p *planner) add(g Guest, condition func(Test) bool) {
	if g.Tests = Names(p.tests, condition); len(g.Tests) > 0 {
		p.guests = append(p.guests, g)
	}
}

// inGuest tells whether a test that runs inside a guest is to run on that kernel and clock.
func (p *planner) inGuest(t Test, kernel string, clock runs.Want) bool {
	return t.Dir != Service && t.In(p.full, kernel, clock)
}

// plain is the condition for guests of the usual size, with tests that share them.
func (p *planner) plain(kernel string, clock runs.Want) func(Test) bool {
	return func(t Test) bool {
		return p.inGuest(t, kernel, clock) && !t.Has(runs.SmallMemory) && !t.Has(runs.FourCPUs) && !t.Has(runs.FastDevices)
	}
}

// ordinary adds the guests on the ordinary clock. The full counts use all CPUs for an hour, and
// some tests then have guests of their own.
func (p *planner) ordinary(kernel string) {
	plain := p.plain(kernel, runs.OrdinaryClock)
	own := func(t Test) bool { return p.full && t.Has(runs.OwnGuestInFull) }
	seeded := func(t Test) bool { return p.full && t.Has(runs.FourSeedsInFull) }
	g := Guest{Script: "device-tests", Kernel: kernel, Alone: p.full}
	shared := g
	shared.Title, shared.Log = "device tests on "+kernel, "device-"+kernel
	p.add(shared, func(t Test) bool { return plain(t) && !own(t) && !seeded(t) })
	for _, name := range Names(p.tests, func(t Test) bool { return plain(t) && own(t) }) {
		g.Tests, g.Title, g.Log = []string{name}, name+" on "+kernel, "device-"+kernel+"-"+name
		p.guests = append(p.guests, g)
	}
	for _, name := range Names(p.tests, func(t Test) bool { return plain(t) && seeded(t) }) {
		for _, seed := range seeds {
			g.Tests, g.Title, g.Log = []string{name}, fmt.Sprintf("%s with seed %s on %s", name, seed, kernel), fmt.Sprintf("device-%s-%s-%s", kernel, name, seed)
			g.Settings = []string{"SEED=" + seed}
			p.guests = append(p.guests, g)
		}
	}
	if p.full && slices.Contains(copying, kernel) {
		copied := Guest{Script: "device-tests", Kernel: kernel, Alone: true, Title: "device tests on " + kernel + ", copied", Log: "device-" + kernel + "-copied",
			Settings: []string{"ZERO_COPY=off"}}
		p.add(copied, func(t Test) bool { return plain(t) && !own(t) })
	}
}

// layered adds the guests whose clones get a layer.
func (p *planner) layered(kernel string) {
	own := func(t Test) bool { return p.full && t.Has(runs.OwnGuestInFull) }
	g := Guest{Script: "device-tests", Kernel: kernel, Alone: p.full, Settings: []string{"DM=on"}}
	shared := g
	shared.Title, shared.Log = "device tests with a layer on "+kernel, "device-"+kernel+"-layer"
	p.add(shared, func(t Test) bool { return t.InLayered(p.full, kernel) && !own(t) })
	for _, name := range Names(p.tests, func(t Test) bool { return t.InLayered(p.full, kernel) && own(t) }) {
		g.Tests, g.Title, g.Log = []string{name}, name+" with a layer on "+kernel, "device-"+kernel+"-layer-"+name
		p.guests = append(p.guests, g)
	}
}

// leaping adds the guests on the leaping clock: with slow devices, and with fast ones.
func (p *planner) leaping(kernel string) {
	g := Guest{Script: "device-tests", Kernel: kernel, Title: "counting check on " + kernel, Log: "bench-" + kernel, Settings: []string{"BENCH=1"}}
	p.add(g, p.plain(kernel, runs.LeapingClock))
	g.Title, g.Log, g.Settings = "what a request costs on "+kernel, "counts-"+kernel, []string{"BENCH=1", "BENCH_S=1"}
	p.add(g, func(t Test) bool { return t.Has(runs.FastDevices) && p.inGuest(t, kernel, runs.LeapingClock) })
}

// fourCPUs adds the guest with four CPUs, where a short run's guests may have two.
func (p *planner) fourCPUs(kernel string) {
	p.add(Guest{Script: "device-tests", Kernel: kernel, Title: "four CPUs on " + kernel, Log: "device-" + kernel + "-four", Settings: []string{"SMP=4"}},
		func(t Test) bool { return t.Has(runs.FourCPUs) && p.inGuest(t, kernel, runs.OrdinaryClock) })
}

// Missing names the tests that no guest of a run has, though they are not measurements of "make
// bench".
func Missing(tests []Test, guests []Guest) []string {
	found := map[string]bool{}
	for _, g := range guests {
		for _, name := range g.Tests {
			found[name] = true
		}
	}
	return Names(tests, func(t Test) bool { return !found[t.Name] && !t.Has(runs.Bench) })
}

// ByHand names the device tests that a run without a plan has: those that want the ordinary clock,
// in a guest of the usual size, or those that have asked for something else.
func ByHand(tests []Test, want runs.Want) []string {
	p := &planner{full: true, tests: tests}
	return Names(tests, func(t Test) bool {
		if want != runs.OrdinaryClock {
			return t.Has(want)
		}
		return !t.Has(runs.SmallMemory) && slices.ContainsFunc(runs.Kernels, func(k string) bool { return p.inGuest(t, k, want) })
	})
}
