// Package leftover finds and removes what dead daemons and killed commands have left: block devices whose users wait, devices
// that were never started, layers, live maps, files in the run folder. It also does the rest of a finish whose daemon died.
//
// A device is known as a clone's by the mark that the driver keeps; one that bears another is somebody else's and is never
// touched. What might still be needed stays.
package leftover
