package dataplane

import (
	"sync/atomic"
)

// pulse is how a loop shows that it goes round. The loop's thread answers once a round, which costs
// it two loads.
type pulse struct{ asked, answered atomic.Uint64 }

// ask says whether the last question was answered, and asks again.
func (p *pulse) ask(wake func()) bool {
	alive := p.answered.Load() == p.asked.Load()
	p.asked.Add(1)
	wake()
	return alive
}

// answer is the loop's.
func (p *pulse) answer() {
	if asked := p.asked.Load(); p.answered.Load() != asked {
		p.answered.Store(asked)
	}
}
