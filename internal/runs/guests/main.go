// Command guests prints what tests declare (package runs), for scripts.
//
//	guests full          the guests of the full run, one a line, fields separated by tabs: beside or alone, script,
//	                     kernel, title, log, settings (or -), and a regular expression for the tests (or -)
//	guests short SHARE   those of a short run with the share 0 to 3 of the sampled tests
//	guests tests WANT    a regular expression for the tests that a run by hand has: those of the ordinary clock
//	                     (OrdinaryClock), of another (CountingClock, LeapingClock), or with another want (Bench ...)
package main

import (
	"cmp"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/ublk-clone/ublk-clone/internal/runs"
	"github.com/ublk-clone/ublk-clone/internal/runs/plan"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "guests:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) == 0 {
		args = []string{"-"}
	}
	tests, err := plan.Load(".")
	if err != nil {
		return err
	}
	share, errShare := strconv.Atoi(args[len(args)-1])
	switch {
	case len(args) == 1 && args[0] == "full":
		show(plan.Guests(true, tests))
		return nil
	case len(args) == 2 && args[0] == "short" && errShare == nil && share >= 0 && share < runs.Shares:
		show(plan.Guests(false, plan.Sample(tests, share)))
		return nil
	case len(args) == 2 && args[0] == "tests":
		names := plan.ByHand(tests, runs.Want(args[1]))
		if len(names) == 0 {
			return fmt.Errorf("no test wants %s", args[1])
		}
		fmt.Println(plan.Expression(names))
		return nil
	}
	return fmt.Errorf("usage: guests full, guests short SHARE or guests tests WANT, not %q", args)
}

func show(guests []plan.Guest) {
	for _, g := range guests {
		fmt.Println(line(g))
	}
}

func line(g plan.Guest) string {
	width, expression := "beside", "-"
	if g.Alone {
		width = "alone"
	}
	if len(g.Tests) > 0 {
		expression = plan.Expression(g.Tests)
	}
	return strings.Join([]string{width, g.Script, g.Kernel, g.Title, g.Log, cmp.Or(strings.Join(g.Settings, " "), "-"), expression}, "\t")
}
