//go:build !faults

package main

// fault makes step k of a start fail in tests. Only a binary built with the tag
// faults has it.
func fault(int) error { return nil }

// faultAt makes a finish go wrong behind a step in tests.
func faultAt(int) error { return nil }

// deadly kills the daemon in tests.
func deadly(int64, int64) {}
