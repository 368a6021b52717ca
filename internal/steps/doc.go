// Package steps runs the steps of a start in order, and takes them back in reverse when one fails or when the process
// stops. Each step has its undo, a limit for it, and perhaps a revert that removes what only a failed start must not leave.
// One goroutine runs a List; any may ask which step is current.
package steps
