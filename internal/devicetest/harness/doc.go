// Package harness is what device tests are made with: the guest, devices in it that fail on demand,
// clones of them, and a model of what every sector must hold.
//
//	m := harness.New(t)                 the guest; checks afterwards that nothing is left
//	source := m.NullBlk(...)            devices: null_blk, loop, dm-linear, files (Disk), and FaultyDisk
//	c := m.AddClone(source, dest, meta) a clone, as a user starts it (Clone)
//	w := harness.NewModel(...)          what every sector of it must hold (Model), through a Volume
//	files := m.NewExt4(...)             a file system with files whose checksums are known (FileTree)
//
// A Machine is made of layers: Guest runs commands and waits, Contents fills and compares devices,
// Devices makes them, and Machine itself has the clones and the file systems. What is made from one
// knows only that.
//
// Every helper fails the test when it cannot do its work, and gives everything back when the test
// ends, in the reverse order, also when it fails. Then the machine is looked over: no ublk device,
// daemon, socket, loop, device-mapper or null_blk device is left, and the kernel has not complained
// (KernelLog).
//
// Nothing waits by sleeping: WaitFor looks until something is so, or a limit has passed. Limits are
// those of the command where it promises one, and generous otherwise: the guests run ten times
// slower than the metal.
//
// It works as root in a guest only, with ublk-clone itself in PATH. What a single test needs stays
// beside that test.
package harness
