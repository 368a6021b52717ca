//go:build !faults

package file

// passed tells a test that a step has been done. Only a binary built with the tag faults listens.
func passed(string, string) {}
