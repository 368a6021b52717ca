package sys

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
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
//  3. touch of it what code will use: the executable, and the writable memory of the runtime
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

// Mappings, other than the heap, that are larger than sparse are tables of which little is ever
// used: the runtime's index of arenas, and zeroed variables with an array of 32 MiB behind them
// that package crypto/internal/fips140/drbg has for machines without a source of randomness. Of
// these only the beginning is touched. In bytes.
const (
	sparse    = 16 << 20
	beginning = 1 << 20
)

// TouchProgram has all pages of the executable and of the runtime's writable memory in memory,
// locked or not.
func TouchProgram() error {
	text, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		return wrap("read the list of mappings", err)
	}
	program, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return wrap("find the executable", err)
	}
	heap := uintptr(unsafe.Pointer(new([64 << 10]byte)))
	for line := range strings.Lines(string(text)) {
		m, err := parseArea(line)
		if err != nil {
			return err
		}
		if advice := m.advice(program); advice != 0 {
			err = madvise(m.start, m.used(heap), advice)
		}
		if err != nil {
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

// used is how much of the area, in bytes, is to be in memory.
func (m area) used(heap uintptr) uintptr {
	if size := m.end - m.start; size < sparse || m.start <= heap && heap < m.end {
		return size
	}
	return beginning
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
