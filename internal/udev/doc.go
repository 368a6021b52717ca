// Package udev writes the files by which udev's rules (packaging/udev) know the devices of a clone, and tells the kernel to
// announce a device again.
package udev
