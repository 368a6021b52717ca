// Package fingerprint tells whether a source still has the content of last time, by a sample of its
// bytes. It reads through whoever has the source open, and knows no device.
package fingerprint
