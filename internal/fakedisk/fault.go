package fakedisk

import "fmt"

// Op is the kind of a call.
type Op uint8

// The calls that can fail.
const (
	OpRead Op = iota
	OpWrite
	OpZero
	OpDiscard
	OpFlush
	OpNextData
)

// String returns the call's name.
func (o Op) String() string {
	return [...]string{"read", "write", "zero", "discard", "flush", "next-data"}[o]
}

// mutates reports whether a call changes the disk or what is durable of it.
func (o Op) mutates() bool { return o != OpRead && o != OpNextData }

// Call is one call of the disk.
type Call struct {
	N           int // how many changing calls there were since SetFault, this one included
	Op          Op
	Off, Length int64 // bytes
}

// Fault is how a call fails.
type Fault struct {
	Err    error
	Landed bool // the call is executed all the same
	Cut    bool // the power is cut: every later call fails with ErrPowerCut
}

// SetFault sets the function that is asked before every call, with the disk's lock held;
// where it returns nil the call passes. SetFault starts the count of calls again and
// switches the power on. SetFault(nil) ends all faults.
func (d *Disk) SetFault(fault func(Call) *Fault) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.fault, d.calls, d.cut = fault, 0, false
}

// FailCall returns a fault for SetFault: the n-th changing call fails with err.
func FailCall(n int, err error, landed bool) func(Call) *Fault {
	return func(c Call) *Fault {
		if c.N != n || !c.Op.mutates() {
			return nil
		}
		return &Fault{Err: err, Landed: landed}
	}
}

// CutPower returns a fault for SetFault: the power is cut during the n-th changing call. A
// write has reached the cache then, so that a crash may keep any part of it; a flush has
// made nothing durable that the crash does not keep.
func CutPower(n int) func(Call) *Fault {
	return func(c Call) *Fault {
		if c.N != n || !c.Op.mutates() {
			return nil
		}
		return &Fault{Err: ErrPowerCut, Landed: c.Op != OpFlush, Cut: true}
	}
}

// BadRange returns a fault for SetFault: calls of kind op that touch [off, off+length)
// fail with err and do nothing.
func BadRange(op Op, off, length int64, err error) func(Call) *Fault {
	return func(c Call) *Fault {
		if c.Op != op || c.Off >= off+length || c.Off+c.Length <= off {
			return nil
		}
		return &Fault{Err: err}
	}
}

// Calls returns how many changing calls there were since SetFault, or ever.
func (d *Disk) Calls() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.calls
}

// call checks a call, asks for its fault and executes it.
func (d *Disk) call(op Op, off, length int64, do func()) error {
	if off < 0 || length < 0 || off+length > d.size || off%SectorBytes != 0 || length%SectorBytes != 0 {
		return fmt.Errorf("fakedisk: %v of %d bytes at byte %d of %d: out of range or not aligned", op, length, off, d.size)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.cut {
		return ErrPowerCut
	}
	if op.mutates() {
		d.calls++
	}
	f := d.failure(Call{N: d.calls, Op: op, Off: off, Length: length})
	if f == nil {
		do()
		return nil
	}
	if f.Landed {
		do()
	}
	d.cut = f.Cut
	return f.Err
}

func (d *Disk) failure(c Call) *Fault {
	if d.fault == nil {
		return nil
	}
	return d.fault(c)
}
