package main

// This file is about the process of a daemon: what it owes to whoever frees memory by writing to its device (I9),
// and the place that it runs in.
//
// A daemon runs in the mount namespace of process 1, whoever starts it, or in one that follows it. In a namespace of its
// own, as `unshare` gives, it would keep copies of mounts: a file system on a clone, its own or another, would stay
// mounted there when it has long been unmounted for everybody else, and the clone in use for ever. And its live
// map would be there, where the next daemon does not look (I6). That of a sandboxed unit follows: what is mounted and
// unmounted outside is so inside, and the live maps' tmpfs was mounted outside before (unit-prepare).
