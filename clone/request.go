package clone

// Op is what a request asks for, as in the block layer.
type Op uint8

// The operations. READ and WRITE have data; the others have none, FLUSH has no range either.
const (
	OpRead Op = iota
	OpWrite
	OpFlush
	OpDiscard
	OpWriteZeroes
)

func (o Op) String() string {
	switch o {
	case OpRead:
		return "READ"
	case OpWrite:
		return "WRITE"
	case OpFlush:
		return "FLUSH"
	case OpDiscard:
		return "DISCARD"
	case OpWriteZeroes:
		return "WRITE_ZEROES"
	}
	return "unknown"
}

// Request is one request of the frontend's, preallocated by it (one per queue and tag) and the
// core's from Lane.Submit until End is called, which happens exactly once, on the lane's thread.
type Request struct {
	Op      Op
	FUA     bool
	NoUnmap bool  // WRITE_ZEROES: keep the space allocated
	Off     int64 // bytes
	Len     int64 // bytes
	Tag     int   // the frontend's own, for it to find the data again
	// End answers the request. Set once; nil error means done whole. It may submit nothing.
	End func(*Request, error)

	lane    *Lane
	next    *Request // a request is in at most one list
	listed  listMark
	after   afterWait
	err     error
	pending int   // READ: parts in flight
	cursor  int64 // READ: first byte that no part has taken yet
}

// afterWait is what becomes of a deferred request when its wait is over.
type afterWait uint8

const (
	startAgain afterWait = iota // from the top, with nothing remembered
	endCommit                   // a commit served it: answer with the commit's error
)

// requestList is a first-in first-out list through Request.next.
type requestList struct{ head, tail *Request }

func (l *requestList) push(r *Request) {
	r.listed.enter()
	r.next = nil
	if l.tail == nil {
		l.head = r
	} else {
		l.tail.next = r
	}
	l.tail = r
}

func (l *requestList) pop() *Request {
	r := l.head
	if r == nil {
		return nil
	}
	if l.head = r.next; l.head == nil {
		l.tail = nil
	}
	r.next = nil
	r.listed.leave()
	return r
}

// take empties the list and returns it.
func (l *requestList) take() requestList {
	t := *l
	*l = requestList{}
	return t
}

func (l *requestList) empty() bool { return l.head == nil }
