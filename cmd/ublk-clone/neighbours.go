package main

// No two clones may have bytes in common, but for a source that both only read. A lock keeps two of them from the very same
// device; a loop device or a table of device-mapper over another clone's device has no such lock, and the devices of a clone
// whose daemon is dead have none at all. So the definitions of all others are looked at, dead ones included.
