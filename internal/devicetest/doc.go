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
//	m := harness.New(t)                 the guest: see package harness
//	source := m.NullBlk(...)            devices: null_blk, loop, dm-linear, files
//	c := m.AddClone(source, dest, meta) a clone, as a user starts it
//	w := harness.NewModel(...)          what every sector of it must hold
//
// A file holds the tests of one promise, and what only they need.
//
// FULL and SEED in the environment set how much is tried and with what (scripts/device-tests).
package devicetest
