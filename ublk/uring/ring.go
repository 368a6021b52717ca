package uring

import (
	"errors"
	"fmt"
	"runtime"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Errors of making and using a ring.
var (
	// ErrTooOld is returned by NewRing on a kernel before 5.5, whose rings are laid out differently
	// and drop completions.
	ErrTooOld = errors.New("io_uring lacks a single mapping or keeps no overflow (kernel before 5.5)")
	// ErrFull is returned by the prepare methods when the submission queue is full and the kernel
	// takes nothing: its completion queue is full too. Reap completions first.
	ErrFull = errors.New("submission queue full")
)

// Options of a ring.
type Options struct {
	Entries           uint32 // submission queue, rounded up to a power of two by the kernel
	CompletionEntries uint32 // completion queue, at least Entries; 0 = twice Entries
	BigSQE            bool   // entries of 128 bytes, for commands with up to 80 bytes of payload
	Slots             uint32 // places for buffers that a driver registers
}

// Completion is one finished entry.
type Completion struct {
	UserData uint64
	Res      int32 // not negative: the operation's result; negative: -errno
}

// Ring is an io_uring. Its methods are called on the thread that made it.
//
// What the kernel has taken is always read from its word and never counted by hand, so that an
// interrupted submit loses nothing and repeats nothing.
type Ring struct {
	fd    int
	flags uint32 // accepted by the kernel
	rings []byte // mapping: both queues
	fixed bool   // a file is registered
	sq    submissions
	cq    completions
}

// submissions are the queue of entries. head and tail are shared with the kernel, prepared is this
// side's cursor.
type submissions struct {
	sqes       []byte // mapping: entries
	stride     uint32 // bytes from an entry to the next
	head, tail *uint32
	mask       uint32
	entries    uint32
	prepared   uint32 // up to here; published by Enter
}

// completions are the queue of what has ended. head and tail are shared with the kernel, taken is
// this side's cursor.
type completions struct {
	head, tail *uint32
	mask       uint32
	cqes       []cqe
	taken      uint32 // by Next up to here; published when it has run dry
	seen       uint32 // tail as last read
}

// preferredFlags make completions run on the waiting thread and only there: 3 to 12 % of requests a
// second.
const preferredFlags = setupSubmitAll | setupCoopTaskrun | setupSingleIssuer | setupDeferTaskrun

// NewRing makes a ring for the calling thread, which must be locked. Flags that the kernel does not
// know are left out.
func NewRing(o Options) (*Ring, error) {
	p := params{cqEntries: o.CompletionEntries}
	if p.cqEntries == 0 {
		p.cqEntries = 2 * o.Entries
	}
	need := uint32(setupCQSize)
	if o.BigSQE {
		need |= setupSQE128
	}
	fd, errno := setup(o.Entries, need|preferredFlags, &p)
	if errno == unix.EINVAL {
		fd, errno = setup(o.Entries, need, &p)
	}
	if errno != 0 {
		return nil, fmt.Errorf("set up io_uring of %d entries: %w", o.Entries, errno)
	}
	r := &Ring{fd: fd, flags: p.flags, sq: submissions{stride: sqeSize}}
	if o.BigSQE {
		r.sq.stride = bigSQESize
	}
	err := r.mapQueues(&p)
	if err == nil && o.Slots > 0 {
		err = r.makeSlots(o.Slots)
	}
	if err != nil {
		return nil, errors.Join(err, r.Close())
	}
	return r, nil
}

// setup is io_uring_setup(2); p keeps the completion queue's size that was asked for.
// The kernel makes the descriptor close-on-exec by itself.
func setup(entries, flags uint32, p *params) (int, unix.Errno) {
	*p = params{cqEntries: p.cqEntries, flags: flags}
	fd, _, errno := unix.Syscall(unix.SYS_IO_URING_SETUP, uintptr(entries), uintptr(unsafe.Pointer(p)), 0)
	return int(fd), errno
}

// mapQueues maps the queues and the entries, and makes the submission array the identity: entry i
// is always at index i.
func (r *Ring) mapQueues(p *params) error {
	if p.features&featSingleMmap == 0 || p.features&featNoDrop == 0 {
		return ErrTooOld
	}
	const prot, flags = unix.PROT_READ | unix.PROT_WRITE, unix.MAP_SHARED | unix.MAP_POPULATE
	size := max(p.sqOff.array+p.sqEntries*4, p.cqOff.cqes+p.cqEntries*cqeSize)
	var err error
	if r.rings, err = unix.Mmap(r.fd, offSQRing, int(size), prot, flags); err != nil {
		return fmt.Errorf("map io_uring queues: %w", err)
	}
	if r.sq.sqes, err = unix.Mmap(r.fd, offSQEs, int(p.sqEntries*r.sq.stride), prot, flags); err != nil {
		return fmt.Errorf("map io_uring entries: %w", err)
	}
	base := unsafe.Pointer(unsafe.SliceData(r.rings))
	word := func(off uint32) *uint32 { return (*uint32)(unsafe.Add(base, off)) }
	r.sq.head, r.sq.tail = word(p.sqOff.head), word(p.sqOff.tail)
	r.sq.mask, r.sq.entries = *word(p.sqOff.ringMask), p.sqEntries
	r.cq.head, r.cq.tail = word(p.cqOff.head), word(p.cqOff.tail)
	r.cq.mask = *word(p.cqOff.ringMask)
	r.cq.cqes = unsafe.Slice((*cqe)(unsafe.Add(base, p.cqOff.cqes)), p.cqEntries)
	array := unsafe.Slice(word(p.sqOff.array), p.sqEntries)
	for i := range array {
		array[i] = uint32(i)
	}
	r.sq.prepared, r.cq.taken = atomic.LoadUint32(r.sq.tail), atomic.LoadUint32(r.cq.head)
	r.cq.seen = r.cq.taken
	return nil
}

// makeSlots makes the table of registered buffers, all of its places empty.
func (r *Ring) makeSlots(n uint32) error {
	table := rsrcRegister{nr: n, flags: registerSparse}
	_, _, errno := unix.Syscall6(unix.SYS_IO_URING_REGISTER, uintptr(r.fd), registerBuffers2,
		uintptr(unsafe.Pointer(&table)), unsafe.Sizeof(table), 0, 0)
	if errno != 0 {
		return fmt.Errorf("make io_uring's table of %d buffers: %w", n, errno)
	}
	return nil
}

// fix registers the file of a descriptor with the ring, which has room for one, and answers what
// entries may have in the descriptor's place: the kernel need not look it up for each. The ring
// keeps the file open until unfix, or for some time after Close.
func (r *Ring) fix(fd int) (int, error) {
	file := int32(fd)
	_, _, errno := unix.Syscall6(unix.SYS_IO_URING_REGISTER, uintptr(r.fd), registerFiles, uintptr(unsafe.Pointer(&file)), 1, 0, 0)
	if errno != 0 {
		return 0, fmt.Errorf("register a file with io_uring: %w", errno)
	}
	r.fixed = true
	return fixedFile, nil
}

// unfix lets go of the registered file, if there is one. Before 6.13 it waits for the I/O on it.
func (r *Ring) unfix() error {
	if !r.fixed {
		return nil
	}
	r.fixed = false
	errno := unix.EINTR
	for errno == unix.EINTR { // while it waits
		_, _, errno = unix.Syscall6(unix.SYS_IO_URING_REGISTER, uintptr(r.fd), unregisterFiles, 0, 0, 0, 0)
	}
	if errno != 0 {
		return fmt.Errorf("unregister io_uring's file: %w", errno)
	}
	return nil
}

// Close unmaps the ring and closes it. The kernel cancels what is outstanding, some of it after
// Close has returned: buffers of I/O that has not completed must stay mapped. A second Close does
// nothing; no other method may follow.
func (r *Ring) Close() error {
	var errs []error
	if r.sq.sqes != nil {
		errs = append(errs, unix.Munmap(r.sq.sqes))
		r.sq.sqes = nil
	}
	if r.rings != nil {
		errs = append(errs, unix.Munmap(r.rings))
		r.rings = nil
	}
	if r.fd >= 0 {
		errs = append(errs, unix.Close(r.fd))
		r.fd = -1
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("close io_uring: %w", err)
	}
	return nil
}

// Pending is the number of entries that were prepared and that the kernel has not taken.
func (r *Ring) Pending() uint32 {
	return r.sq.prepared - atomic.LoadUint32(r.sq.head)
}

// Ready is the number of completions that Next would return without another Enter.
func (r *Ring) Ready() uint32 {
	return atomic.LoadUint32(r.cq.tail) - r.cq.taken
}

// Enter submits everything prepared and returns when at least wait completions are ready. It also
// runs deferred work and brings in completions that the kernel had kept back while the queue was
// full, so a wait of 0 is a poll. Errors are EAGAIN and EBUSY, after which completions should be
// reaped and Enter called again (nothing is lost), and those that end the ring.
//
// With raw the runtime is not told that the thread sleeps: it keeps its P, which saves it 3.4 futex
// calls and 9 us a request when the wait is short, and costs other goroutines a processor when it
// is long: there have to be more of them (GOMAXPROCS) than threads that wait so.
//
// The runtime interrupts the wait with a signal when it wants the thread to stop; the kernel then
// answers EINTR, or, if it had taken entries, their number. Both mean: go on, and let the runtime
// have its way in between. An assembler system call is no place where a goroutine can be stopped,
// hence the explicit yield.
func (r *Ring) Enter(wait uint32, raw bool) error {
	r.publish()
	for ; ; runtime.Gosched() {
		errno := r.enter(r.Pending(), wait, raw)
		if errno != 0 && errno != unix.EINTR {
			return errno
		}
		if r.Pending() == 0 && r.Ready() >= wait {
			return nil
		}
	}
}

// enter is io_uring_enter(2), once.
func (r *Ring) enter(submit, wait uint32, raw bool) unix.Errno {
	var errno unix.Errno
	if raw {
		_, _, errno = unix.RawSyscall6(unix.SYS_IO_URING_ENTER, uintptr(r.fd), uintptr(submit), uintptr(wait), enterGetEvents, 0, 0)
	} else {
		_, _, errno = unix.Syscall6(unix.SYS_IO_URING_ENTER, uintptr(r.fd), uintptr(submit), uintptr(wait), enterGetEvents, 0, 0)
	}
	return errno
}

// publish shows the kernel the entries up to tail. The store is a release (paired with the acquire
// in io_sqring_entries, io_uring.c, 6.12): the entries are written before it.
func (r *Ring) publish() {
	atomic.StoreUint32(r.sq.tail, r.sq.prepared)
}

// Next takes the next completion. It is called until it says false; only then are the places given
// back to the kernel. The load of the tail is an acquire (paired with the release in
// io_commit_cqring, io_uring.h, 6.12).
func (r *Ring) Next() (Completion, bool) {
	if r.cq.taken == r.cq.seen && !r.refill() {
		return Completion{}, false
	}
	c := &r.cq.cqes[r.cq.taken&r.cq.mask]
	r.cq.taken++
	return Completion{UserData: c.userData, Res: c.res}, true
}

// refill gives the places taken back to the kernel and reads its tail again; false: nothing new.
func (r *Ring) refill() bool {
	if *r.cq.head != r.cq.taken {
		atomic.StoreUint32(r.cq.head, r.cq.taken)
	}
	r.cq.seen = atomic.LoadUint32(r.cq.tail)
	return r.cq.seen != r.cq.taken
}
