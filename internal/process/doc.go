// Package process is the place of a daemon's process in the system: what it inherits from whoever
// started it, the mount namespace that it runs in, its threads and its heap. Of the clone it knows
// only the paths in its definition.
//
// A daemon runs in the mount namespace of process 1, whoever starts it, or in one that follows it.
// In a namespace of its own, as `unshare` gives, it would keep copies of mounts: a file system on a
// clone, its own or another, would stay mounted there long after everybody else has unmounted it,
// and the clone would be in use forever. And its live map would be there, where the next daemon
// does not look. The namespace of a sandboxed unit follows: what is mounted and unmounted outside
// is so inside, and the tmpfs of the live maps was mounted outside before (unit-prepare).
//
// Invariants: I6 (the daemon sees the live maps of process 1) and I9 (memory is there before it is
// needed).
package process
