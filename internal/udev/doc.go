// Package udev writes the files by which udev's rules (packaging/udev) recognise the devices of a clone, and makes the
// kernel announce a device again.
package udev
