// Package testkit has helpers that tests of several packages share: a control socket that answers,
// and a wait for counts to go back.
package testkit
