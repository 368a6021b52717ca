// Package footprint calculates how much memory a clone will take, and how its buffers are cut.
package footprint
