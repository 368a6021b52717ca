// Package definition holds what a user asks of a clone: its definition, its settings and changes to
// them, the equivalent dm-clone line, and dm-clone's messages. It does no I/O.
//
// A new setting is a field of Settings and of Change, a line in Change.Apply and in the table Keys,
// and is converted in FromMetadata and ToMetadata (settings.go).
package definition
