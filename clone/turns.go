package clone

// turnPages is how many pages of the region map DISCARDs and WRITE_ZEROES may go through in a round
// of the loop, or one request if it goes through more. A discard of a whole device comes as
// thousands of requests, of up to 17 pages each; a READ that comes meanwhile waits for those of one
// round, not for all that are there.
const turnPages = 16

// turns are DISCARDs and WRITE_ZEROES that wait for theirs, and allowance is how many pages of the
// region map such requests may still go through in this round.
type turns struct {
	wakeUp    func()
	waiting   requestList
	allowance int
}

// free says that a request that comes now has its turn.
func (t *turns) free() bool { return t.allowance > 0 && t.waiting.empty() }

// wait has r wait for its turn, which begins with the next Drain.
func (t *turns) wait(r *Request) {
	if t.waiting.empty() {
		t.wakeUp()
	}
	t.waiting.push(r)
}

// next gives the next whose turn it is in this round, in order, or nil.
func (t *turns) next() *Request {
	if t.allowance <= 0 {
		return nil
	}
	return t.waiting.pop()
}
