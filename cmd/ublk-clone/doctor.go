package main

import (
	"github.com/urfave/cli/v2"

	"github.com/ublk-clone/ublk-clone/internal/control"
	"github.com/ublk-clone/ublk-clone/internal/doctor"
)

func (p *program) doctor(c *cli.Context) error {
	if _, err := words(c, 0, 0); err != nil {
		return err
	}
	output, err := form(c, "json")
	if err != nil {
		return err
	}
	h := doctor.ThisMachine(p.dir, p.allStatuses, p.checkDefined)
	all := doctor.Examine(h)
	if output != "" {
		err = encodeJSON(p.out, doctor.Report{Schema: control.Schema, Kernel: h.Release(), Problems: doctor.Count(all, doctor.LevelProblem), Warnings: doctor.Count(all, doctor.LevelWarning), Checks: all})
	} else {
		err = doctor.Write(p.out, all)
	}
	if err != nil {
		return err
	}
	return doctor.Problem(all)
}

// allStatuses are those of all clones.
func (p *program) allStatuses() ([]control.Status, error) {
	names, err := p.dir.Names()
	if err != nil {
		return nil, err
	}
	return p.statuses(names)
}
