// Package uring is one io_uring, and an event loop on it for one operating system thread.
//
// # Ring
//
// A [Ring] is the two queues shared with the kernel, and nothing else: entries are prepared with
// typed methods, [Ring.Enter] submits them and waits, [Ring.Next] returns what has completed. It
// knows nothing of requests.
//
//	      prepare            Enter                       Next
//	program ----> SQ tail ----------> SQ head   CQ tail ----------> CQ head
//	                        kernel takes            kernel has put
//
// # Loop
//
// A [Loop] owns a ring and serves one thread: backend I/O that is finished whole, through a [Port]
// to each file or a [Stream] to each server, commands of a driver, and wake-ups from other threads.
// One round is: submit and wait; completions; drain. See [Loop.Run].
//
// # Threads
//
// A ring and a loop belong to the thread that made them (IORING_SETUP_SINGLE_ISSUER: the kernel
// refuses any other). The goroutine calls runtime.LockOSThread before it makes one and does not
// unlock until it has closed it. Only [Loop.Wake] may be called from elsewhere. There are no locks:
// the wake-up is an atomic flag and an eventfd.
//
// # Memory
//
// The kernel reads and writes buffers while no Go code holds their address: they come from
// [MapBuffer], never from the Go heap or a stack, and stay mapped until the I/O has completed. Or
// they are no memory of this process at all: a driver puts the pages of its requests into the
// ring's table ([Registered]).
package uring
