package main

import (
	"github.com/urfave/cli/v2"

	"github.com/ublk-clone/ublk-clone/internal/control"
	"github.com/ublk-clone/ublk-clone/internal/doctor"
)

func (p *program) doctor(c *cli.Context) error {
	_, output, err := wordsForm(c, 0, 0, "json")
	if err != nil {
		return err
	}
	h := doctor.ThisMachine(p.dir, reporter{p.dir, p.left(), p.out}.all, func(name string) error { return checkDefined(p.defined, name) })
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
