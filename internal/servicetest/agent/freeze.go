package main

import (
	"fmt"
	"runtime"
	"strconv"

	"golang.org/x/sys/unix"
)

// freeze stops one thread of another process, as a tracer that never lets it go on, until that
// process is gone: no signal stops a thread alone.
func freeze(tid string) error {
	runtime.LockOSThread() // a tracer is a thread
	id, err := strconv.Atoi(tid)
	if err != nil {
		return err
	}
	if err := unix.PtraceSeize(id); err != nil {
		return fmt.Errorf("trace thread %d: %w", id, err)
	}
	if err := unix.PtraceInterrupt(id); err != nil {
		return fmt.Errorf("stop thread %d: %w", id, err)
	}
	if _, err := fmt.Println("frozen"); err != nil {
		return err
	}
	for {
		var status unix.WaitStatus
		if _, err := unix.Wait4(id, &status, unix.WALL, nil); err != nil || status.Exited() || status.Signaled() {
			return err
		}
	}
}
