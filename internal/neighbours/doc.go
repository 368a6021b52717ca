// Package neighbours says which devices all other clones of this machine use, the dead ones
// included, and where they lie, so that no two clones share bytes, except a source that both only
// read.
//
// A lock keeps two clones from the very same device. But a loop device or a table of device-mapper
// over another clone's device has no such lock, and the devices of a clone whose daemon is dead
// have none at all. So the definitions of all other clones are read.
package neighbours
