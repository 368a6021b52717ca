// Package dataplane is where the driver (package ublk), the core (package clone) and the hydrator
// (package hydrate) meet.
//
//	Frontend     the ublk.Target of one queue: requests of the driver become requests of a lane, answers become commits
//	Background   the hydrator's thread: a loop without driver commands that copies through a lane
//	Backend      a lane's I/O: to the source through a Source, to the destination through a File
//	Source       what all lanes read; it can be exchanged, be away, have changed, or not answer
//	gate         holds requests while the destination is handed over, and tells what is at work; an Order moves it
//	Caution      one request at a time after several deaths in a row
//
// Threads: one for each queue and one for the hydrator, each locked to its goroutine, which blocks
// in io_uring_enter only. Other goroutines leave an Order, exchange the Source, or ask for a sign
// of life; they wake the loop and the thread obeys in its next round. A READ or WRITE of hydrated
// regions takes no lock and allocates nothing.
//
// It knows neither metadata nor definitions: all it says about an error is which side failed.
//
// Invariants: I7 (one description of the destination), I11 (a request that kills the daemon), I14
// and I15 (a source that has changed or is silent).
package dataplane
