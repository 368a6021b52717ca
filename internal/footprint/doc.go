// Package footprint says how much memory a clone takes, before it is there, and how its buffers are cut.
package footprint
