// Command guests prints what tests declare (package runs), for scripts.
//
//	guests short|full    the guests of a run, one a line, fields separated by tabs: beside or alone, script, kernel,
//	                     title, log, settings (or -), and a regular expression for the tests (or -)
//	guests tests WANT    a regular expression for the tests that a run by hand has: those of the ordinary clock
//	                     (OrdinaryClock), of another (CountingClock, LeapingClock), or with another want (Bench ...)
package main

import (
	"cmp"
	"fmt"
	"os"
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
	tests, err := plan.Load(".")
	if err != nil {
		return err
	}
	switch what := strings.Join(args, " "); {
	case what == "short" || what == "full":
		for _, g := range plan.Guests(what == "full", tests) {
			fmt.Println(line(g))
		}
		return nil
	case len(args) == 2 && args[0] == "tests":
		names := plan.ByHand(tests, runs.Want(args[1]))
		if len(names) == 0 {
			return fmt.Errorf("no test wants %s", args[1])
		}
		fmt.Println(plan.Expression(names))
		return nil
	}
	return fmt.Errorf("usage: guests short|full, or guests tests WANT, not %q", args)
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
