package uring

import (
	"bytes"
	"testing"

	"golang.org/x/sys/unix"
)

// liar is a server that answers as a script says, one byte for each thing that it does, and then
// closes.
type liar struct {
	*fakeServer
	have   []asked
	before []byte // the last answer
	raw    bool   // it has sent bytes of the script, which may be anything
}

// tell does what b says; false: the connection is of no more use.
func (l *liar) tell(b byte, rest []byte) bool {
	if len(l.have) == 0 {
		return false
	}
	i := int(b>>3) % len(l.have)
	a := l.have[i]
	switch b & 7 {
	case 0, 1, 2:
		l.before, l.have = a.reply(), append(l.have[:i], l.have[i+1:]...)
		return l.send(l.before)
	case 3:
		l.before, l.have = head(a.handle, unix.EIO), append(l.have[:i], l.have[i+1:]...)
		return l.send(l.before)
	case 4: // a part
		l.send(a.reply()[:int(b)*2])
		return false
	case 5: // again
		return l.send(l.before)
	case 6:
		return l.send(head(a.handle+(1+uint64(b>>3))<<32, 0))
	}
	l.raw = true
	return l.send(rest)
}

// FuzzStream: whatever a server does, each read ends once, those that it answered with the bytes of
// the answer, and the stream has nothing with the kernel afterwards.
func FuzzStream(f *testing.F) {
	f.Add(uint8(8), []byte{0, 8, 16, 3, 0, 0, 0, 0})
	f.Add(uint8(3), []byte{0, 0, 4})
	f.Add(uint8(2), []byte{1, 5})
	f.Add(uint8(4), []byte{3, 14})
	f.Add(uint8(1), []byte{7, 0x67, 0x44, 0x66, 0x98, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, limit uint8, script []byte) {
		const tokens, length = 8, 512
		most := int(limit)%tokens + 1
		l, r := newTestLoop(t, LoopOptions{Tokens: tokens, Streams: 1})
		server := &liar{}
		done := make(chan struct{})
		s := openTestStream(t, l, most, func(f *fakeServer) {
			defer close(done)
			server.fakeServer, server.have = f, f.take(most)
			for i, b := range script {
				if !server.tell(b, script[i+1:]) {
					return
				}
			}
		})
		b := mapTestBuffer(t, tokens*length)
		for token := range uint32(tokens) {
			s.Read(token, int64(token)<<20, Memory(b[token*length:][:length]))
		}
		var ended [tokens]int
		ends := r.until(t, l, tokens)
		<-done
		for _, e := range ends {
			if ended[e.token]++; ended[e.token] > 1 {
				t.Errorf("token %d has ended twice", e.token)
			}
			part := b[e.token*length:][:length]
			if e.err == nil && !server.raw && !bytes.Equal(part, content(int64(e.token)<<20, length)) {
				t.Errorf("token %d has bytes that nobody has sent", e.token)
			}
		}
		l.settle(t)
		if !s.Idle() || !l.Idle() {
			t.Errorf("idle: the stream %v, the loop %v", s.Idle(), l.Idle())
		}
	})
}
