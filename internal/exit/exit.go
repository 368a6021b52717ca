// Package exit holds the exit codes of the command, which are an interface and
// do not change, and the error that carries one.
//
// An Error answers what a user asks: what was tried, on which object, why it
// failed, what to do next. It is built where all four are known and passed up
// unchanged; Code finds it under any number of %w.
package exit

import (
	"errors"
	"strings"
)

// The exit codes.
const (
	OK       = 0  // done, or already so
	Other    = 1  // none of the following
	Usage    = 2  // the command line is wrong
	NoClone  = 3  // no clone of that name
	Exists   = 4  // a clone of that name exists and is defined otherwise
	Busy     = 5  // somebody has it open; the holders are listed
	Denied   = 6  // permission
	Feature  = 7  // the kernel or the driver lacks a feature
	Source   = 8  // the source failed or does not fit
	Dest     = 9  // the destination failed or does not fit
	Metadata = 10 // metadata missing, damaged or not of this pair
	Timeout  = 11 // a limit passed
	Differs  = 12 // reserved: what was compared differs
	NoAnswer = 13 // the daemon does not answer
	Refused  = 14 // would lose data
)

// ForUnit is added to the code of a daemon that a service manager has started, so that its exit
// status is none that the runtime of Go may end a process with (exit(1) to exit(5) in
// runtime/panic.go, signal_unix.go and os_linux.go, Go 1.26).
const ForUnit = 100

// Meaning is the one-line description of each code, for the help text, in
// order.
var Meaning = []struct {
	Code int
	Text string
}{
	{OK, "done, or already so"},
	{Other, "any other failure"},
	{Usage, "wrong command line"},
	{NoClone, "no such clone"},
	{Exists, "the clone exists with another definition"},
	{Busy, "in use; the users are listed"},
	{Denied, "permission denied"},
	{Feature, "a feature of the kernel or driver is missing"},
	{Source, "the source failed or does not fit"},
	{Dest, "the destination failed or does not fit"},
	{Metadata, "the metadata is missing, damaged or of another clone"},
	{Timeout, "timed out"},
	{Differs, "reserved: what was compared differs"},
	{NoAnswer, "the daemon does not answer"},
	{Refused, "refused, because data would be lost"},
}

// Error is a failure as the user sees it.
type Error struct {
	Code   int    // exit code
	Doing  string // what was tried: "open the destination"
	Object string // on what: a path, a name; may be empty
	Cause  error  // why; may be nil if Doing says it all
	Next   string // what to do next; may be empty
}

// Error is the message without the next step, in one line.
func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString(e.Doing)
	if e.Object != "" {
		b.WriteString(" " + e.Object)
	}
	if e.Cause != nil {
		b.WriteString(": " + e.Cause.Error())
	}
	return b.String()
}

// Unwrap is the cause.
func (e *Error) Unwrap() error { return e.Cause }

// Code is the exit code for err: 0 for nil, that of the first Error in the
// chain, else Other.
func Code(err error) int {
	if err == nil {
		return OK
	}
	var e *Error
	if errors.As(err, &e) {
		return e.Code
	}
	return Other
}

// Next is the next step that the first Error in the chain names, or "".
func Next(err error) string {
	var e *Error
	if errors.As(err, &e) {
		return e.Next
	}
	return ""
}
