// Package rate measures rates: of a source that is read for a moment (Read), and of hydration from totals (Meter).
package rate
