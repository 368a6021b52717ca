package sys

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

// NoHugePages keeps the kernel from joining pages of this process to huge ones behind its back
// (khugepaged): locked or not they are gone from the page tables meanwhile, and whoever touches
// them waits in a page fault, for a lock that is held over all of this process's memory
// (collapse_huge_page, mm/khugepaged.c, 6.12 to 7.3).
func NoHugePages() error {
	return wrap("prctl PR_SET_THP_DISABLE", unix.Prctl(unix.PR_SET_THP_DISABLE, 1, 0, 0, 0))
}

// LockMemory takes the memory of the program, that of the Go heap and what is mapped so far and
// touched, and keeps it and all that will be mapped in memory:
//
//  1. lift the limit of locked memory, which would make later mappings fail: needs CAP_SYS_RESOURCE
//  2. lock what is there, and what comes meanwhile: each page as it is touched, because much of
//     what the Go runtime maps it never uses (32 MiB of an index of arenas, for one)
//  3. touch of it what code will use: the executable, and the writable memory of the runtime as far
//     as it is in use, or soon will be
//  4. from now on a mapping is locked and has all of its pages at once: the heap grows by whole
//     pieces, in mmap, and never in a page fault
//  5. touch what the runtime has mapped during 3
//
// Step 2 is of the future too: without it what the runtime mapped in step 3 was not locked, and
// with swap on the clone the collector waited for a page of it, and the queues for the collector
// (512 MiB, 7.3).
//
// After that GiveBack fails on memory that Unlock was not called for.
func LockMemory() error {
	unlimited := unix.Rlimit{Cur: unix.RLIM_INFINITY, Max: unix.RLIM_INFINITY}
	if err := unix.Setrlimit(unix.RLIMIT_MEMLOCK, &unlimited); err != nil {
		return wrap("lift the limit of locked memory", err)
	}
	if err := unix.Mlockall(unix.MCL_CURRENT | unix.MCL_FUTURE | unix.MCL_ONFAULT); err != nil {
		return wrap("lock memory", err)
	}
	if err := TouchProgram(); err != nil {
		return err
	}
	if err := unix.Mlockall(unix.MCL_FUTURE); err != nil {
		return wrap("lock memory", err)
	}
	return TouchProgram()
}

// Unlock lets the memory of v, which lies in a Mapping, be given back by GiveBack.
func (m *Mapping) Unlock() error { return wrap("unlock memory", unix.Munlock(m.bytes)) }

// How much of the runtime's memory behind what is in use is to be in memory too, in bytes. What the
// runtime allocates for itself and never frees comes in chunks of 256 KiB that are used from one end
// to the other (persistentChunkSize, runtime/malloc.go, go 1.26); a run of pages in use is such a
// chunk, and a page or two are mostly a table's. Half a chunk is what the runtime needs to know of
// 6 MiB more of the heap, in spans of 8 KiB.
const (
	run       = 32 << 10
	behindRun = 128 << 10
	behind    = 32 << 10
)

// TouchProgram has in memory, locked or not, all pages of the executable, and of the runtime's
// writable memory what is in use and what follows it for a while (behind). Much of what the runtime
// maps is tables of which it uses some pages: an index of arenas of 32 MiB, one of chunks of 1 MiB,
// 1.4 MiB for profiles that nobody takes, and an array of 32 MiB that package
// crypto/internal/fips140/drbg has for machines without a source of randomness. All of them took
// 4 MiB when the first MiB of each was touched.
func TouchProgram() error {
	text, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		return wrap("read the list of mappings", err)
	}
	program, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return wrap("find the executable", err)
	}
	advance.Lock()
	defer advance.Unlock()
	for line := range strings.Lines(string(text)) {
		m, err := parseArea(line)
		if err != nil {
			return err
		}
		if err := m.touch(program); err != nil {
			return fmt.Errorf("touch memory %s: %w", strings.TrimSpace(line), err)
		}
	}
	return nil
}

// area is a line of /proc/PID/maps: addresses, access, offset, device, inode, name
// (proc_pid_maps(5)).
type area struct {
	start, end uintptr
	access     string // as "rw-p"
	name       string // of the file; "" for memory without one
}

func parseArea(line string) (m area, err error) {
	f := strings.Fields(line)
	if len(f) < 5 {
		return m, fmt.Errorf("unknown line in the list of mappings: %q", line)
	}
	first, last, _ := strings.Cut(f[0], "-")
	start, errStart := strconv.ParseUint(first, 16, 64)
	end, errEnd := strconv.ParseUint(last, 16, 64)
	m = area{start: uintptr(start), end: uintptr(end), access: f[1], name: strings.Join(f[5:], " ")}
	return m, errors.Join(errStart, errEnd)
}

// advice that has the pages of the area in memory; 0 for one that is to be as it is.
func (m area) advice(program string) int {
	switch {
	case m.access[3] != 'p' || m.access[0] != 'r':
		return 0
	case m.name == program && m.access[1] != 'w':
		return unix.MADV_POPULATE_READ
	case m.access[1] != 'w' || m.name != "" && m.name != program:
		return 0
	}
	return unix.MADV_POPULATE_WRITE
}

// stretch is the memory from one address to another.
type stretch struct{ start, end uintptr }

// advance is what TouchProgram has taken in advance, so that a second call takes no more behind
// that: nobody knows whether it is in use by then.
var advance struct {
	sync.Mutex
	list []stretch
}

// touch has in memory what is to be there of the area. advance must be locked.
func (m area) touch(program string) error {
	advice := m.advice(program)
	switch {
	case advice == 0:
		return nil
	case m.name != "":
		return madvise(m.start, m.end-m.start, advice)
	}
	used, err := m.present()
	if err != nil {
		return err
	}
	page := uintptr(os.Getpagesize())
	for _, s := range advance.list {
		for at := max(s.start, m.start); at < min(s.end, m.end); at += page {
			used[(at-m.start)/page] = 0
		}
	}
	for _, s := range extend(used, int(page)) {
		first, end := m.start+s.start*page, m.start+s.end*page
		if err := madvise(first, end-first, advice); err != nil {
			return err
		}
		advance.list = append(advance.list, stretch{first, end})
	}
	return nil
}

// present says of each page of the area whether it is in memory (mincore(2)).
func (m area) present() ([]byte, error) {
	pages := make([]byte, (m.end-m.start)/uintptr(os.Getpagesize()))
	_, _, errno := unix.Syscall(unix.SYS_MINCORE, m.start, m.end-m.start, uintptr(unsafe.Pointer(unsafe.SliceData(pages))))
	if errno != 0 {
		return nil, errno
	}
	for i := range pages {
		pages[i] &= 1 // the other bits are reserved
	}
	return pages, nil
}

// extend gives the pages behind those in use that are to be in memory too.
func extend(used []byte, page int) (list []stretch) {
	for i := 0; i < len(used); {
		if used[i] == 0 {
			i++
			continue
		}
		first := i
		for i < len(used) && used[i] == 1 {
			i++
		}
		more := behind
		if (i-first)*page >= run {
			more = behindRun
		}
		end := min(len(used), i+more/page)
		if n := len(list); n > 0 && int(list[n-1].end) > first { // what is in use lies in what was added behind another
			list[n-1].end = max(list[n-1].end, uintptr(end))
			continue
		}
		if end > i {
			list = append(list, stretch{uintptr(i), uintptr(end)})
		}
	}
	return list
}

// madvise is madvise(2) of memory that is known by its address only.
func madvise(start, length uintptr, advice int) error {
	return retry(func() error {
		if _, _, errno := unix.Syscall(unix.SYS_MADVISE, start, length, uintptr(advice)); errno != 0 {
			return errno
		}
		return nil
	})
}
