package daemon

import (
	"cmp"
	"errors"
	"reflect"

	"github.com/ublk-clone/ublk-clone/internal/control"
	"github.com/ublk-clone/ublk-clone/internal/exit"
)

// takeName locks the name of the clone, which its daemon is made to leave if this one is to replace
// it.
func (d *daemon) takeName() (err error) {
	if d.start.Replace {
		if err = d.engine.WarmUp(); err == nil {
			err = d.engine.MayReplace(d.dir)
		}
		if err == nil {
			err = d.relieve()
		}
	}
	if err != nil {
		return err
	}
	d.lock, err = d.dir.Acquire(d.start.Definition.Name)
	return err
}

// relieve makes the daemon of that name leave its device. What one that has ended complains of, as
// metadata that fail, its device is not to wait for: the next one finds it so.
func (d *daemon) relieve() error {
	def := &d.start.Definition
	limit := cmp.Or(d.start.Fence, control.LeaveLimit)
	_, err := d.dir.Ask(def.Name, control.Request{Verb: control.VerbLeave, WaitMS: limit.Milliseconds()}, limit+control.StopLimit)
	if exit.Code(err) == exit.Usage { // the previous release, which knows no limit, has refused the request and done nothing
		_, err = d.dir.Ask(def.Name, control.Request{Verb: control.VerbLeave}, control.StopLimit)
	}
	if err != nil && !d.dir.AwaitEnd(def.Name, control.EndLimit) {
		return err
	}
	if err != nil {
		d.engine.Warn("the daemon before this one: %v", err)
	}
	return nil
}

// stillDefined fails if the clone that this daemon was to take over was ended, or is another by
// now. The name is locked.
func (d *daemon) stillDefined() error {
	def := &d.start.Definition
	there, err := d.dir.Load(def.Name)
	if err != nil || reflect.DeepEqual(there, def) {
		return err
	}
	return &exit.Error{Code: exit.Busy, Doing: "recover", Object: def.Name, Cause: errors.New("it was defined anew meanwhile"), Next: "Try again."}
}
