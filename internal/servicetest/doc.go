// Package servicetest holds the tests of ublk-clone as a service: they need a machine with systemd
// and udev that reboots. They run on the host, as root, by "make service-test", and drive guests of
// scripts/service-vm; the build tag service keeps them out of "go test".
//
// # How a test is made
//
//	runs.On(t, "6.18")                      on which kernels "make test" runs it: see package internal/runs
//	g := newGuest(t, options{disks: ...})   not booted yet; each disk is /dev/disk/by-id/virtio-NAME
//	g.boot()                                until systemd has started what it starts
//	g.run("mount", ...)                     must succeed; try, sh and start are its relatives
//	g.reboot()                              as a user does it
//	g.powerCut()                            as the mains do it; boot comes next
//
// A test is one straight function: it goes on after a reboot where it was before. The guest's root,
// its disks and /share live as long as the test. Commands are run in the guest by an agent (package
// agent), over a virtio port.
//
// When the test ends, the guest's consoles and journals are kept in build/results, and the kernel
// must not have complained.
//
// KERNEL, FULL and SEED in the environment are those of the device tests (scripts/service-tests).
package servicetest
