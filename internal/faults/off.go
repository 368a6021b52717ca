//go:build !faults

package faults

// Start makes step k of a start fail in tests. Only a binary built with the tag
// faults has it.
func Start(int) error { return nil }

// Finish makes a finish go wrong behind a step in tests.
func Finish(int) error { return nil }

// Exchange makes an exchange of direct extents go wrong behind a step in tests.
func Exchange(int) error { return nil }

// Request kills the daemon in tests.
func Request(int64, int64) {}
