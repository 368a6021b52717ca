// Package host reads the identity of this machine and of this boot.
package host
