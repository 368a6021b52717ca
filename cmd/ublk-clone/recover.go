package main

import (
	"errors"
	"fmt"
	"os"

	"github.com/urfave/cli/v2"

	"github.com/ublk-clone/ublk-clone/internal/exit"
)

// recover is the command.
func (p *program) recover(c *cli.Context) error {
	if _, err := form(c, "json"); err != nil {
		return err
	}
	if !c.Bool("all") {
		name, err := named(c)
		if err != nil {
			return err
		}
		return p.recoverNamed(name)
	}
	if _, err := words(c, 0, 0); err != nil {
		return err
	}
	names, err := p.dir.names()
	for _, name := range names {
		err = errors.Join(err, p.recoverNamed(name))
	}
	return err
}

// recoverNamed prints the device of a clone that it has brought back.
func (p *program) recoverNamed(name string) error {
	def, err := p.dir.load(name)
	if err != nil || p.dir.alive(name) {
		return err
	}
	device, err := p.recoverDead(start{Definition: *def, Open: true, Recover: true})
	if err == nil {
		_, err = fmt.Fprintln(p.out, device)
	}
	return err
}

// recoverDead starts a daemon that takes over. Where the metadata and what is known of the writes since cannot
// be trusted any more, nobody ever will: then the device is stopped, so that its users do not wait for good.
func (p *program) recoverDead(st start) (device string, err error) {
	device, err = p.dir.spawn(st)
	if exit.Code(err) != exit.Metadata {
		return device, err
	}
	return "", errors.Join(err, p.clearDead(&st.Definition))
}

// continued makes an add whose clone has a dead daemon and a living device a recovery of that.
func (p *program) continued(st start) (start, error) {
	there, err := p.dir.load(st.Definition.Name)
	if exit.Code(err) == exit.NoClone {
		return st, nil
	}
	if err != nil {
		return st, err
	}
	if _, err := os.Stat(there.Device); there.Device == "" || err != nil {
		return st, nil
	}
	if diff := there.differences(&st.Definition); diff != "" {
		return st, &exit.Error{Code: exit.Exists, Doing: "add clone", Object: there.Name,
			Cause: errors.New("it exists, its daemon is dead, and its " + diff),
			Next:  "`ublk-clone recover " + there.Name + "` brings it back as it was, `ublk-clone del " + there.Name + "` ends it."}
	}
	return start{Definition: *there, Open: true, Recover: true}, nil
}

// prune is the command: it deletes the devices that nobody serves, of clones that were made here.
func (p *program) prune(c *cli.Context) error {
	if _, err := words(c, 0, 0); err != nil {
		return err
	}
	if _, err := form(c, "json"); err != nil {
		return err
	}
	names, err := p.dir.names()
	for _, name := range names {
		def, loadErr := p.dir.load(name)
		if loadErr != nil || p.dir.alive(name) {
			continue
		}
		if clearErr := p.clearDead(def); clearErr != nil {
			err = errors.Join(err, clearErr)
			continue
		}
		fmt.Fprintln(p.out, name)
	}
	return err
}
