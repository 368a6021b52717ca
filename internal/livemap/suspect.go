package livemap

import "sync/atomic"

// Request is one of a user's, as it can be known again when it is sent anew after a death.
type Request struct {
	Op     uint32 // not 0
	Off    int64  // bytes
	Length int64  // bytes
}

// Blame is how many daemons have died with a request at work.
type Blame struct {
	Request Request
	Deaths  uint32
}

// MaxBlames bounds how many requests are blamed at a time.
const MaxBlames = 16

// trouble is what a daemon leaves to the next one in case it dies soon. It lies in the state's block, behind the
// words. One caller at a time writes it. A request counts while its op is set: that is stored last, and taken back first.
type trouble struct {
	_      [1024]byte
	deaths atomic.Uint32
	op     atomic.Uint32
	off    int64
	length int64
	blamed uint64
	blames [MaxBlames]Blame
}

// Deaths is how many daemons in a row have died soon after their start.
func (m *Map) Deaths() uint32 { return m.trouble.deaths.Load() }

// SetDeaths counts them.
func (m *Map) SetDeaths(n uint32) { m.trouble.deaths.Store(n) }

// SetSuspect notes the only request that is at work.
func (m *Map) SetSuspect(r Request) {
	m.trouble.off, m.trouble.length = r.Off, r.Length
	m.trouble.op.Store(r.Op)
}

// ClearSuspect notes that it is answered.
func (m *Map) ClearSuspect() { m.trouble.op.Store(0) }

// Suspect is the request that was at work when a daemon died, if there was one.
func (m *Map) Suspect() (r Request, ok bool) {
	r = Request{Op: m.trouble.op.Load(), Off: m.trouble.off, Length: m.trouble.length}
	return r, r.Op != 0
}

// Blames are the requests that daemons have died of, as SetBlames has kept them.
func (m *Map) Blames() []Blame {
	n := min(m.trouble.blamed, MaxBlames)
	return append([]Blame(nil), m.trouble.blames[:n]...)
}

// SetBlames keeps the last MaxBlames.
func (m *Map) SetBlames(all []Blame) {
	all = all[max(0, len(all)-MaxBlames):]
	m.trouble.blamed = 0 // a death in between forgets them
	copy(m.trouble.blames[:], all)
	m.trouble.blamed = uint64(len(all))
}
