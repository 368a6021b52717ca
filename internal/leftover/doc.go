// Package leftover finds and removes what dead daemons and killed commands have left: block devices
// whose users wait, devices that were never started, layers, live maps, files in the run directory.
// It also completes a finish whose daemon died.
//
// The cookie that the driver keeps identifies the device of a clone. A device with another cookie
// belongs to somebody else and is never touched. What might still be needed stays.
package leftover
