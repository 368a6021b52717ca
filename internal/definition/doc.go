// Package definition is what a clone was asked to be: its definition, its settings and changes of them, the line of dm-clone
// that says the same, and dm-clone's messages. It does no I/O.
//
// A new setting is a field of Settings and of Change, and a line in the table keys (settings.go).
package definition
