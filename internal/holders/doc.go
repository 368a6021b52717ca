// Package holders finds out who uses the block device of a clone, and stops the device only if
// nobody does. It asks the kernel, not /proc alone: descriptors that no process shows count too.
//
// To see whether a device is free it starts this program as a helper, which opens the device
// exclusively (unused.go). The helper inherits no descriptor of the daemon, so that it keeps no
// lock (I7), and it has a time limit.
package holders
