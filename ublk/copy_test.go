package ublk

import (
	"bytes"
	"errors"
	"os"
	"testing"

	"github.com/ublk-clone/ublk-clone/ublk/uring"
	"golang.org/x/sys/unix"
)

// The bytes of requests come from and go to ublkcN, of which a sparse file stands in: it has a
// place for each byte of each tag of each queue, as the driver has (UBLK_F_USER_COPY).

const copyDepth = 4

// copyQueue is queue 3 of a device, of which tag's descriptor is op with length bytes.
func copyQueue(t *testing.T, zeroCopy bool) (q *Queue, ublkc *os.File) {
	t.Helper()
	ublkc, err := os.CreateTemp("/dev/shm", "ublkc") // files on tmpfs may be that long
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ublkc.Close() })
	if err := os.Remove(ublkc.Name()); err != nil { // it lives while it is open
		t.Fatal(err)
	}
	dev := &kernelDevice{charFD: int(ublkc.Fd())}
	dev.info.MaxIO, dev.info.Depth = 3<<20, copyDepth
	dev.info.Features.AutoBufReg, dev.info.Features.UserCopy = zeroCopy, zeroCopy
	q = &Queue{dev: dev, index: 3, descriptors: descriptors{descs: make([]ioDesc, copyDepth)}, owners: make([]owner, copyDepth)}
	if err := q.buffers.make(q.dev, q.index); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := q.buffers.free(); err != nil {
			t.Error(err)
		}
	})
	return q, ublkc
}

// describe gives tag a request.
func (q *Queue) describe(tag uint16, op, flags uint32, length int) {
	q.descs[tag] = ioDesc{opFlags: op | flags, nrSectors: uint32(length >> sectorShift)}
}

// placeOf is where ublk_cmd.h has byte at of tag of queue 3: UBLKSRV_IO_BUF_OFFSET, 25 bits of
// bytes, 16 of tags.
func placeOf(tag uint16, at int64) int64 { return 0x80000000 + 3<<41 + int64(tag)<<25 + at }

// TestUserCopy: the bytes of a registered request are fetched from, stored to and cleared at its
// own place, all of them and no others.
func TestUserCopy(t *testing.T) {
	q, ublkc := copyQueue(t, true)
	if !q.buffers.registers || q.slots() != copyDepth || q.memory(1) != nil {
		t.Fatalf("registers %t, %d slots", q.buffers.registers, q.slots())
	}
	const length, tag = 3 << 20, 2
	b, err := uring.MapBuffer(length)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = uring.UnmapBuffer(b) }()
	content := func(tag uint16) []byte {
		got := make([]byte, length+8192)
		if _, err := ublkc.ReadAt(got, placeOf(tag, -4096)); err != nil {
			t.Fatal(err)
		}
		return got
	}
	for n := range uint16(copyDepth) { // something that is to stay as it is, on all sides
		if _, err := ublkc.WriteAt(bytes.Repeat([]byte{0xee}, length+8192), placeOf(n, -4096)); err != nil {
			t.Fatal(err)
		}
	}
	want := content(tag)
	for i := range b {
		b[i] = byte(i>>9) | 1
	}
	if err := q.Store(tag, 512, b[:length-1024]); err != nil {
		t.Fatal(err)
	}
	copy(want[4096+512:], b[:length-1024])
	if got := content(tag); !bytes.Equal(got, want) {
		t.Error("Store has written other bytes, or elsewhere")
	}
	clear(b)
	if err := q.Fetch(tag, 4096, b[:length-8192]); err != nil || !bytes.Equal(b[:length-8192], want[8192:length]) {
		t.Errorf("Fetch has read other bytes (%v)", err)
	}
	if err := q.Clear(tag, 1024, length-4096); err != nil { // more than the buffer of zeros
		t.Fatal(err)
	}
	clear(want[4096+1024:][:length-4096])
	if got := content(tag); !bytes.Equal(got, want) {
		t.Error("Clear has zeroed other bytes")
	}
	for _, other := range []uint16{1, 3} {
		if !bytes.Equal(content(other), bytes.Repeat([]byte{0xee}, length+8192)) {
			t.Errorf("the bytes of tag %d have changed", other)
		}
	}
	q.describe(tag, OpRead, 0, 8192)
	if d := q.Data(tag); d != uring.Registered(tag, 0, 8192) {
		t.Errorf("data %+v", d)
	}
	q.describe(tag, OpFlush, 0, 0)
	if d := q.Data(tag); d.Len() != 0 {
		t.Errorf("a FLUSH has data %+v", d)
	}
	if err := ublkc.Truncate(0); err != nil {
		t.Fatal(err)
	}
	if err := q.Fetch(tag, 0, b[:4096]); err == nil {
		t.Error("a Fetch of what is not there has ended well")
	}
	q.dev.charFD = -1
	for what, err := range map[string]error{"Fetch": q.Fetch(tag, 0, b[:512]), "Store": q.Store(tag, 0, b[:512]), "Clear": q.Clear(tag, 0, 512)} {
		if !errors.Is(err, unix.EBADF) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// TestTagBuffers: without registration each tag has a buffer of its own, which the driver is told
// of.
func TestTagBuffers(t *testing.T) {
	q, _ := copyQueue(t, false)
	for tag := range uint16(copyDepth) {
		inEntry, inCommand := q.place(tag)
		if m := q.memory(tag); inEntry != 0 || inCommand != addressOf(m) || len(m) != 3<<20 {
			t.Errorf("tag %d: %#x and %#x for %d bytes at %#x", tag, inEntry, inCommand, len(m), addressOf(m))
		}
		if err := q.Store(tag, 512, bytes.Repeat([]byte{byte(tag) + 1}, 1<<20)); err != nil {
			t.Fatal(err)
		}
	}
	for tag := range uint16(copyDepth) {
		want := append(make([]byte, 512), append(bytes.Repeat([]byte{byte(tag) + 1}, 1<<20), make([]byte, 512)...)...)
		got := make([]byte, len(want))
		if err := q.Fetch(tag, 0, got); err != nil || !bytes.Equal(got, want) {
			t.Errorf("tag %d has other bytes (%v)", tag, err)
		}
		if err := q.Clear(tag, 512, 1<<20); err != nil || !bytes.Equal(q.memory(tag)[:len(want)], make([]byte, len(want))) {
			t.Errorf("tag %d is not cleared (%v)", tag, err)
		}
	}
	q.describe(1, OpWrite, 0, 4096)
	if d := q.Data(1); d != uring.Memory(q.memory(1)[:4096]) {
		t.Errorf("data %+v", d)
	}
}

// TestBouncedBytes: a WRITE for which the driver could not register memory has its bytes in the
// bounce buffer, a READ brings them from there to the request when it ends well, and meanwhile
// others wait.
func TestBouncedBytes(t *testing.T) {
	q, ublkc := copyQueue(t, true)
	const length = 64 << 10
	bytesOfTag := bytes.Repeat([]byte{7}, length)
	if _, err := ublkc.WriteAt(bytesOfTag, placeOf(1, 0)); err != nil {
		t.Fatal(err)
	}
	q.describe(1, OpWrite, flagNeedRegBuf, length)
	q.describe(2, OpRead, flagNeedRegBuf, length)
	q.describe(3, OpRead, 0, length)
	for tag, want := range []bool{false, true, true, false} {
		if got := q.needsBounce(q.desc(uint16(tag))); got != want {
			t.Errorf("tag %d needs the bounce buffer: %t", tag, got)
		}
	}
	target := &scripted{q: q, how: inDrain} // nobody calls its Drain
	q.target = target
	if q.serveBounced(1, q.desc(1)); len(target.got) != 1 || !bytes.Equal(q.memory(1)[:length], bytesOfTag) {
		t.Fatalf("the WRITE has come %d times, with other bytes than its own", len(target.got))
	}
	if d := q.Data(1); d != uring.Memory(q.buffers.bounce[:length]) {
		t.Errorf("data of the WRITE %+v", d)
	}
	if q.bounceIsFree() || q.memory(2) != nil {
		t.Fatal("the buffer is free for the READ while the WRITE has it")
	}
	if err := q.leaveBounce(3, unix.EIO); err != unix.EIO || q.buffers.bounced != 1 {
		t.Errorf("a request that has not got it: %v, it is tag %d's", err, q.buffers.bounced)
	}
	if err := q.leaveBounce(1, nil); err != nil || q.buffers.bounced != noTag {
		t.Fatalf("the WRITE's end: %v, it is tag %d's", err, q.buffers.bounced)
	}
	for _, failed := range []error{unix.EIO, nil} {
		if q.serveBounced(2, q.desc(2)); q.buffers.bounced != 2 {
			t.Fatal("the READ has not got it")
		}
		copy(q.memory(2), bytes.Repeat([]byte{9}, length))
		if err := q.leaveBounce(2, failed); err != failed {
			t.Errorf("the READ ended with %v, expected %v", err, failed)
		}
		got := make([]byte, length)
		_, err := ublkc.ReadAt(got, placeOf(2, 0))
		if brought := err == nil && bytes.Equal(got, bytes.Repeat([]byte{9}, length)); brought != (failed == nil) {
			t.Errorf("a READ that ended with %v was brought its bytes: %t", failed, brought)
		}
	}
	q.serveBounced(2, q.desc(2))
	q.dev.charFD = -1
	if err := q.leaveBounce(2, nil); !errors.Is(err, unix.EBADF) {
		t.Errorf("bytes that cannot be brought: %v", err)
	}
}
