// Package metadev looks at metadata where it lies, on a device or in a file, or in the live map that stands in for it. It
// changes nothing but when metadata is given up (Erase). Reads of a device that does not answer are left behind after a
// limit.
package metadev
