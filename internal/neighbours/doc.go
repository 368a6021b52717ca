// Package neighbours says which devices all other clones of this machine use, the dead ones included, and where they lie, so
// that no two clones share bytes.
package neighbours
