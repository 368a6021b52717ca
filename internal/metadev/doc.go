// Package metadev looks at metadata where it lies, on a device or in a file, or in the live map
// that stands in for it. It changes metadata only to erase it (EraseDead). A read of a device that
// does not answer is abandoned after a limit.
package metadev
