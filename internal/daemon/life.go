package daemon

import (
	"slices"
)

// The life of a clone. This drawing is the one place that says what a clone can be, what leads from one to the other, and who
// may do that. A phase is what a living daemon knows of it; the rest is seen by whoever finds no daemon (package leftover).
//
//	                 any step fails, add again
//	        +------------------------------------------+
//	        v           1 add                          |
//	    no clone ---------------------------------> starting
//	     ^  ^  ^                                       | all steps are done
//	     |  |  |            2 del, nobody uses it      v            4 finish
//	     |  |  +-- stopping <------------------------ up <---------------------+
//	     |  |         |                              |  ^ |   a step fails     |
//	     |  |         |            3 leave, or death |  | +---------------> finishing
//	     |  |         | death                        |  |                      |    | users are on
//	     |  |         v                              v  | all steps           |    | the destination
//	     |  +----- waiting: no daemon, the device <--+  | are done            |    v
//	     |   6 --force, or  users of it wait     <-----------------------------+  stopping, and no clone
//	     |     nobody uses it  | 5 recover    ^         |       death
//	     |                     v              |         |
//	     |                recovering ---------+---------+
//	     |                              any step fails, or death
//	     +-- 1 to 6 by root only: by a command, the service manager, or for 3 and 5 a successor (succession.go)
//
// What is durable or outlives the daemon at each arrow, when the next state begins:
//
//	1  the superblock without a clean mark, flushed, before the first request is answered; the live map and the
//	   definition are on tmpfs
//	2  the last commit, then the clean mark; then the live map goes, and the definition last
//	3  a leave: nothing is at work, and all marks are committed. A death: all marks are in the live map. The block device,
//	   the live map and the definition stay in both
//	4  the list in internal/engine/finish.go says it for each step
//	5  nothing is changed until metadata, live map and device are found to belong together, and all locks are held; what is in
//	   the live map only is committed by the next FLUSH
//	6  nothing is committed: the next add takes the live map over, which stays
//
// Two rules hold at every arrow (I13). Nobody leaves "up" for a successor before that is known to be able to serve
// (package preflight) and nothing keeps the daemon from ending (internal/engine/leave.go). And from "waiting" and "recovering" only `del` or
// `prune` lead to "no clone", with --force if somebody uses the device: a recovery that fails leads back to "waiting".

// phase is how far a daemon is. The engine is asked and changed in phaseUp only.
type phase uint8

const (
	phaseStarting phase = iota // or recovering
	phaseUp                    // bringing all to rest for a leave is part of it: it may come to nothing
	phaseFinishing
	phaseStopping // for good, or for the next daemon
)

// after is what a daemon can be next, as it is drawn above.
var after = [...][]phase{
	phaseStarting:  {phaseUp, phaseStopping},
	phaseUp:        {phaseFinishing, phaseStopping},
	phaseFinishing: {phaseUp, phaseStopping},
	phaseStopping:  nil,
}

// leadsTo says whether that phase can follow.
func (p phase) leadsTo(next phase) bool { return p == next || slices.Contains(after[p], next) }
