package clone

// pool is a lane's operations and copy buffers, a fixed number of each (I9). Whoever finds none
// free waits in starved, if it is a request, holding nothing. Lane.Drain starts those again.
type pool struct {
	ops     []op
	freeOps []*op
	buffers [][]byte // free ones
	// nrBuffers is how many there are in all, each of bufSize bytes.
	nrBuffers int
	bufSize   int64
	starved   requestList
}

func (p *pool) init(nrOps int, buffers [][]byte) {
	p.ops = make([]op, nrOps)
	p.freeOps = make([]*op, 0, nrOps)
	for i := range p.ops {
		p.ops[i].token = uint32(i)
		p.freeOps = append(p.freeOps, &p.ops[i])
	}
	p.buffers = append(p.buffers, buffers...)
	p.nrBuffers, p.bufSize = len(buffers), int64(len(buffers[0]))
}

// newOp takes an operation for r, or gives nil: then r is in the starved list.
func (p *pool) newOp(r *Request) *op {
	o := p.take()
	if o == nil {
		p.starved.push(r)
		return nil
	}
	o.req = r
	return o
}

// take takes an operation, or gives nil.
func (p *pool) take() *op {
	n := len(p.freeOps)
	if n == 0 {
		return nil
	}
	o := p.freeOps[n-1]
	p.freeOps = p.freeOps[:n-1]
	return o
}

// freeOp gives back an operation and its buffer.
func (p *pool) freeOp(o *op) {
	p.freeBuffer(o)
	o.checkFree()
	o.opState, o.plan.planCounts = opState{}, planCounts{}
	p.freeOps = append(p.freeOps, o)
}

func (p *pool) takeBuffer(o *op) bool {
	n := len(p.buffers)
	if n == 0 {
		return false
	}
	o.buf = p.buffers[n-1]
	p.buffers = p.buffers[:n-1]
	return true
}

func (p *pool) freeBuffer(o *op) {
	if o.buf != nil {
		p.buffers = append(p.buffers, o.buf)
		o.buf = nil
	}
}

// plenty says that more than half of the operations and of the buffers are free.
func (p *pool) plenty() bool {
	return len(p.freeOps) > len(p.ops)/2 && len(p.buffers) > p.nrBuffers/2
}
