// Package explain gives the errors of lower packages their exit codes, and says what to do about
// them. A new kind of error of the ublk driver, the metadata or the live map gets its advice here.
package explain
