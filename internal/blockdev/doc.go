// Package blockdev opens what a clone is made of: a source, a destination and
// the metadata, each a block device or a file, under the rules that keep data
// safe.
//
//	            block device                  file
//	source      O_RDONLY|O_EXCL *             O_RDONLY, flock shared
//	destination O_RDWR|O_EXCL|O_DIRECT        O_RDWR|O_DIRECT, flock exclusive, space reserved
//	metadata    O_RDWR|O_EXCL|O_DIRECT        O_RDWR, O_DIRECT where there is, flock exclusive, sparse
//
//	* without O_EXCL if the user says that several clones share the source
//
// I1: the source is opened read-only and nothing here writes to it; a source
// that is mounted or held is refused. So is every device whose bytes somebody else
// reaches by another way (users.go).
//
// I7: each device has ONE open file description, made here, which holds the
// lock. Whoever does I/O uses File or a duplicate of it; nobody opens the path
// again for I/O, and every descriptor is close-on-exec, so no helper inherits
// one. Close gives the lock back once the last request through it has ended.
//
// The clone is as large as the source, or shorter. Its logical block is the larger of
// both sides'; sizes are never rounded (Match). No two of the three may overlap,
// through partitions, loop devices and device-mapper (Options.Others). A destination
// that carries something known is refused (Signature).
//
// A Device is made of layers, each of which knows those below it only:
//
//	node      path and role, and what the kernel says of it; not open (node.go)
//	opened    the one open description, and its end (opened.go)
//	watched   what it was like at open; holes (change.go, holes.go)
//	Device    with its blocks (units), and how far it is made if it is a new file (making)
//
// setup is what Open does with it, by its Options (setup.go, space.go, users.go).
//
// What the kernel says of all devices is the tree (tree.go), with the processes that use them
// (processes.go). Searches begin there: climb for what a device lies on (overlap.go), search for
// who reaches its bytes another way (users.go), ublkDevices for users that no process shows
// (opens.go).
//
// Every error is an *exit.Error. While the clone serves, lanes ask CheckRead
// in each round in which they have read the source, the hydrator asks for holes,
// the watcher looks whether the devices are as they were, and the committer does
// its I/O through MetadataFile. Nothing else here is used then.
package blockdev
