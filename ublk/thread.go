package ublk

import (
	"errors"
	"os"
	"runtime"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/ublk-clone/ublk-clone/internal/guard"
	"github.com/ublk-clone/ublk-clone/ublk/uring"
)

const (
	// controlSlots is the number of commands that the driver is given at a time. One that hangs
	// holds its slot for good: more than a process with one device can have, with some to lose.
	controlSlots = 16
	// slotSize is the room for a command's data; the largest is the CPU bitmap of a queue, 1 KiB
	// for 8192 CPUs.
	slotSize = 4096
)

// command is a control command on its way. The thread owns it from post to the send on done.
type command struct {
	name string
	op   uint32
	head ctrlCmd
	data []byte // in and out; nil: none
	slot int    // noSlot while it is not with the kernel
	done chan int32

	cancelled bool // because nobody waits for it any more
	given     int  // how often the kernel has given it up
}

const noSlot = -1

// controlThread issues control commands from one thread and hands their results back. What other
// goroutines reach is in mu.
type controlThread struct {
	loop    *uring.Loop
	fd      int
	scratch []byte // controlSlots times slotSize: what the kernel reads and writes
	slots   [controlSlots]*command

	mu struct {
		sync.Mutex
		posted    []*command // in order, not with the kernel yet
		abandoned []*command // nobody waits for them any more
		closing   bool
	}
	ended chan struct{} // closed when the thread has ended; then err is set
	err   error
}

// startControlThread starts the thread on the open control device, which must stay open until ended
// is closed.
func startControlThread(control *os.File) (*controlThread, error) {
	scratch, err := uring.MapBuffer(controlSlots * slotSize)
	if err != nil {
		return nil, err
	}
	t := &controlThread{fd: int(control.Fd()), scratch: scratch, ended: make(chan struct{})}
	ready := make(chan error)
	go t.run(ready)
	if err := <-ready; err != nil {
		return nil, errors.Join(err, uring.UnmapBuffer(scratch))
	}
	return t, nil
}

// run is the thread. The goroutine stays locked, so that the thread ends with it.
func (t *controlThread) run(ready chan<- error) {
	runtime.LockOSThread()
	defer guard.Guard("control device", guard.Fatal)
	var err error
	t.loop, err = uring.NewLoop(t, uring.LoopOptions{Commands: controlSlots, BigSQE: true})
	ready <- err
	if err != nil {
		return
	}
	err = t.loop.Run()
	t.err = errors.Join(ErrClosed, err, t.loop.Close())
	if !t.busy() { // a command that never ended may still write there
		t.err = errors.Join(t.err, uring.UnmapBuffer(t.scratch))
	}
	close(t.ended)
}

func (t *controlThread) busy() bool {
	for _, c := range t.slots {
		if c != nil {
			return true
		}
	}
	return false
}

// post hands c over; its result comes on c.done.
func (t *controlThread) post(c *command) {
	c.slot = noSlot
	t.mu.Lock()
	t.mu.posted = append(t.mu.posted, c)
	t.mu.Unlock()
	t.loop.Wake()
}

// abandon says that nobody waits for c any more: it is not sent, or cancelled.
func (t *controlThread) abandon(c *command) {
	t.mu.Lock()
	t.mu.abandoned = append(t.mu.abandoned, c)
	t.mu.Unlock()
	t.loop.Wake()
}

// close ends the thread, whatever is outstanding, and waits for that.
func (t *controlThread) close() {
	t.mu.Lock()
	t.mu.closing = true
	t.mu.Unlock()
	t.loop.Wake()
	<-t.ended
}

// Drain takes what was posted.
func (t *controlThread) Drain() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.mu.closing {
		t.loop.Stop()
		return
	}
	for _, c := range t.mu.abandoned {
		t.giveUp(c)
	}
	t.mu.abandoned = t.mu.abandoned[:0]
	for slot := range t.slots {
		if t.slots[slot] == nil && len(t.mu.posted) > 0 {
			t.issue(slot, t.mu.posted[0])
			t.mu.posted = t.mu.posted[1:]
		}
	}
}

// giveUp cancels c if the kernel has it, and forgets it if it waits. mu must be held.
func (t *controlThread) giveUp(c *command) {
	if c.slot != noSlot && t.slots[c.slot] == c {
		c.cancelled = true
		t.loop.CancelCommand(uint32(c.slot))
		return
	}
	for i, p := range t.mu.posted {
		if p == c {
			t.mu.posted = append(t.mu.posted[:i], t.mu.posted[i+1:]...)
			return
		}
	}
}

// issue gives c to the kernel, its data in the slot's part of the scratch memory.
func (t *controlThread) issue(slot int, c *command) {
	t.slots[slot], c.slot = c, slot
	if c.data != nil {
		room := t.room(slot)
		copy(room, c.data)
		c.head.addr, c.head.len = addressOf(room), uint16(len(c.data))
	}
	t.loop.Command(uint32(slot), t.fd, c.op, 0, bytesOf(&c.head))
}

func (t *controlThread) room(slot int) []byte {
	return t.scratch[slot*slotSize : (slot+1)*slotSize]
}

// Command is the kernel's answer to issue.
func (t *controlThread) Command(id uint32, res int32) {
	c := t.slots[id]
	if !c.cancelled && uring.GivenUp(res, c.given) {
		c.given++
		t.issue(int(id), c)
		return
	}
	t.slots[id] = nil
	copy(c.data, t.room(int(id)))
	c.done <- res
}

// EndIO is never called: the thread has no backend I/O.
func (t *controlThread) EndIO(uint32, error) {}

// nameThread gives the calling thread a name for those who look at the process. Where it fails
// nothing is lost.
func nameThread(name string) {
	text := append([]byte(name), 0)
	_ = unix.Prctl(unix.PR_SET_NAME, uintptr(unsafe.Pointer(unsafe.SliceData(text))), 0, 0, 0)
}

// commandTimeout is the limit of a command whose context has none. Those that wait for something
// outside the driver take seconds at most.
const commandTimeout = 30 * time.Second
