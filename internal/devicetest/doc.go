// Package devicetest holds the tests that need a kernel with the ublk driver and
// devices that may be written to. They are compiled on the host and run as root
// in a guest by "make vm-test"; the build tag device keeps them out of "go test".
//
// The guest (scripts/vm) gives them a writable root in memory, tmpfs on /tmp and
// /run, modprobe, configfs, and ublk-clone itself in PATH.
package devicetest
