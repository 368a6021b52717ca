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

// trouble is what a daemon leaves to the next one in case it dies soon. It lies in the state's
// block, behind the words. One caller at a time writes it. A request counts while its op is set:
// that is stored last, and taken back first.
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
func (t *trouble) Deaths() uint32 { return t.deaths.Load() }

// SetDeaths counts them.
func (t *trouble) SetDeaths(n uint32) { t.deaths.Store(n) }

// SetSuspect notes the only request that is at work.
func (t *trouble) SetSuspect(r Request) {
	t.off, t.length = r.Off, r.Length
	t.op.Store(r.Op)
}

// ClearSuspect notes that it is answered.
func (t *trouble) ClearSuspect() { t.op.Store(0) }

// Suspect is the request that was at work when a daemon died, if there was one.
func (t *trouble) Suspect() (r Request, ok bool) {
	r = Request{Op: t.op.Load(), Off: t.off, Length: t.length}
	return r, r.Op != 0
}

// Blames are the requests that daemons have died of, as SetBlames has kept them.
func (t *trouble) Blames() []Blame {
	n := min(t.blamed, MaxBlames)
	return append([]Blame(nil), t.blames[:n]...)
}

// SetBlames keeps the last MaxBlames.
func (t *trouble) SetBlames(all []Blame) {
	all = all[max(0, len(all)-MaxBlames):]
	t.blamed = 0 // a death in between forgets them
	copy(t.blames[:], all)
	t.blamed = uint64(len(all))
}
