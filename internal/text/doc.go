// Package text turns sizes, rates and times into words and back, and wraps lines. It knows nothing
// of clones.
package text
