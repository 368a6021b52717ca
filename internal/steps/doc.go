// Package steps runs the steps of a start in order, and undoes them in reverse when one fails or
// when the process stops. Each step has its undo, a limit for it, and perhaps a revert: that
// removes what a failed start must not leave behind, and a stop does. One goroutine runs a List;
// any goroutine may ask which step is current.
package steps
