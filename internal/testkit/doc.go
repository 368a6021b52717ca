// Package testkit has helpers that tests of several packages share: a control socket that answers,
// and counts that settle.
package testkit
