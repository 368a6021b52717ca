package clone

import "github.com/ublk-clone/ublk-clone/internal/copybuffers"

// pool is a lane's operations, a fixed number, and its copy buffers (I9). Whoever finds none
// free waits in starved, if it is a request, holding nothing. Lane.Drain starts those again.
type pool struct {
	ops     []op
	freeOps []*op
	buffers copybuffers.Set
	bufSize int64 // of a whole one
	starved requestList
}

func (p *pool) init(cfg *LaneConfig) {
	p.ops = make([]op, cfg.Ops)
	p.freeOps = make([]*op, 0, cfg.Ops)
	for i := range p.ops {
		p.ops[i].token = uint32(i)
		p.freeOps = append(p.freeOps, &p.ops[i])
	}
	p.buffers.Init(&cfg.Buffers, cfg.Wake)
	p.bufSize = p.buffers.Size()
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

// takeBuffer takes a buffer of need bytes, or of bufSize if that is less.
func (p *pool) takeBuffer(o *op, need int64) bool {
	o.buf = p.buffers.Take(need)
	return o.buf != nil
}

func (p *pool) freeBuffer(o *op) {
	if o.buf != nil {
		p.buffers.Give(o.buf)
		o.buf = nil
	}
}

// plenty says that more than half of the operations and of the buffers are free.
func (p *pool) plenty(need int64) bool {
	return len(p.freeOps) > len(p.ops)/2 && p.buffers.Plenty(need)
}
