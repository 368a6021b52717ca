// Package succession brings a clone up in place of what is there: a daemon that serves, one that is
// dead, or one that is defined alike and needs nothing. If that fails, it says what has become of
// the users: a failed successor takes the device from nobody (I13).
package succession
