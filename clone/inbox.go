package clone

import "sync"

// inbox is where other threads leave requests for a lane.
type inbox struct {
	sync.Mutex // a leaf: nothing is taken under it
	list       requestList
}

// post says whether r is the first one there.
func (b *inbox) post(r *Request) bool {
	b.Lock()
	first := b.list.empty()
	b.list.push(r)
	b.Unlock()
	return first
}

func (b *inbox) take() requestList {
	b.Lock()
	all := b.list.take()
	b.Unlock()
	return all
}
