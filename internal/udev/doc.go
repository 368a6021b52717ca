// Package udev writes the files by which udev's rules (packaging/udev) recognise the devices of a
// clone, makes the kernel announce a device again, and sees to the links by which users know clones
// (Links), also where udev does not.
//
// There is a file for the clone's block device and one for its destination, each called after the
// kernel's name for it, and one for its layer, with lines that a rule imports. The block device
// gets its stable name from it, /dev/ublk-clone/NAME, unless there is a layer, which gets that name
// then. Neither it nor the layer is searched for file systems and the like before all is hydrated:
// that would read through to a source that may be slow, or away. The destination carries the same
// file systems as the clone, and loses the names that come from them, so that nobody mounts it in
// the clone's place while no daemon holds it (I7).
package udev
