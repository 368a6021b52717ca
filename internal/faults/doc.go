// Package faults lets tests break a daemon at a chosen point: after a step of its start or of a
// finish, or at a request that touches a chosen byte. Only a binary that is built with the tag
// faults has them; in all others the functions are empty. The points are read from the environment
// (on.go).
package faults
