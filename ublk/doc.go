// Package ublk makes block devices that are served by this process: /dev/ublkbN, by the kernel's
// driver ublk_drv.
//
// It speaks the driver's protocol (include/uapi/linux/ublk_cmd.h) and knows nothing of what is
// stored. A [Target] is called with each request and answers it with [Queue.Commit]; backend I/O
// goes through the same ring as the driver's commands, by [Queue.Loop].
//
// # A device's life
//
//	         Create         Start          Stop           Delete
//	(none) ---------> added -----> live ---------> stopped -----> (none)
//	                               ^  |
//	                         Start |  | Leave, or the death of the process,
//	                               |  v of a device with Options.Recoverable
//	                      found <------- left: ublkbN stays, its users wait
//	                             Recover
//
//	Create   1 ADD_DEV  2 look at what came back  3 open ublkcN  4 SET_PARAMS
//	Recover  GET_DEV_INFO2 until the driver knows that the server is gone; GET_PARAMS
//	Start    5 queues: ring, buffers, target  6 if found, START_USER_RECOVERY, open ublkcN
//	         7 descriptors, FETCH of all tags  8 START_DEV or END_USER_RECOVERY
//	Leave    QUIESCE_DEV, the queues answer what they have at work, and leave; where there is no QUIESCE_DEV
//	         they stay, doing nothing, until the process ends
//	Stop     STOP_DEV: the kernel drains through the queues, which then leave
//	Delete   DEL_DEV
//
// Stop is final: a device is not started again. A step of Create or Start that fails undoes those
// before it; a device that was found is then as it was, for the next Recover.
//
// # A request's life
//
//	FETCH_REQ ----> Target.Request ----> ... ----> Queue.Commit (COMMIT_AND_FETCH_REQ) ---+
//	                     ^                                                                |
//	                     +------------------------- the tag's next request ---------------+
//
// # What holds
//
//   - The driver is told the full length of a request or an errno, never a part: some kernels take
//     any result of a WRITE for the whole ([Queue.Commit] does not offer anything else).
//   - A tag is with the kernel or with the target; a commit of a tag that the target does not have
//     is a bug and ends the process.
//   - The buffers of a queue, where there are any (data.go), are one mapping, there from before the
//     first FETCH until the queue has left.
//   - A request of a recoverable device fails only because a target said so, or because somebody
//     stopped the device: whatever ends the process, and wherever Leave, Recover or Start fail, it
//     waits in the driver for the next server. One that was not answered is sent again, so that a
//     target must be able to do everything twice.
//   - While a queue of a device fetches, no other queue closes a ring with commands in it: the last
//     FETCH would have the driver use them after they were freed (Queue.awaitOthers).
//   - A queue's goroutine ends by a shutdown, or by leaving, and in no other way: when its thread
//     dies the driver tells nobody, and its requests fail for ever. A panic there, or a failure of
//     its ring, ends the process (see [Options.Fatal]).
//
// # Parts
//
// A Device orders the steps above. It has the device as the driver has it (kernelDevice), its
// queues, what it tells them (orders) and what has gone wrong in them (failures); a Queue knows all
// but the other queues, and not the Device. It has its descriptors, its buffers, which are also the
// way to bytes that the driver keeps, and who owns each tag.
//
// # Threads
//
// One goroutine per queue, locked to its thread, which makes the ring, fetches, and commits: the
// driver takes a commit only from the thread that fetched the tag. One goroutine for control
// commands, locked as well and there as long as its Control: the kernel runs these commands on
// worker threads that belong to the thread that submitted them. START_DEV blocks until all tags of
// all queues are fetched and on some kernels reads the device, so that it never runs on a queue's
// thread. Device methods are called from one goroutine at a time. Nothing here takes a lock on a
// request's way.
package ublk
