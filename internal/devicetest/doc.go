// Package devicetest holds the tests that need a kernel with the ublk driver and
// devices that may be written to. They are compiled on the host and run as root
// in a guest by "make vm-test"; the build tag device keeps them out of "go test".
//
// The guest (scripts/vm) gives them a writable root in memory, tmpfs on /tmp and
// /run, modprobe, configfs, and ublk-clone itself in PATH.
//
// # How a test is made
//
//	runs.On(t, "7.3")                   on which kernels "make test" runs it: see package internal/runs
//	m := newMachine(t)                  the guest; checks afterwards that nothing is left
//	source := m.nullBlk(...)            devices: null_blk, loop, dm-linear, files
//	c := m.add(source.path, dest.path)  a clone, as a user starts it
//	w := newModel(...)                  what every sector of it must hold
//
// Everything is given back when the test ends, in the reverse order, also when it
// fails. Then the machine is looked over: no ublk device, daemon, socket, loop,
// device-mapper or null_blk device is left, and the kernel has not complained.
//
// Nothing waits by sleeping: waitFor looks until something is so, or a limit has
// passed. Limits are those of the command where it promises one, and generous
// otherwise: the guests run ten times slower than the metal.
//
// FULL and SEED in the environment set how much is tried and with what (scripts/device-tests).
package devicetest
