// Package rate measures rates: that of a source, by reading it for a moment (Read), and that of
// hydration, from totals (Meter), once a second (Sampler).
package rate
