// Package holders finds out who uses the block device of a clone, and stops the device only if nobody does. It asks the
// kernel, not /proc alone: descriptors that no process shows count too.
package holders
