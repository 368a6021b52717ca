// Package succession brings a clone up in place of what was there: a daemon that serves, one that is dead, or a definition that
// is the same already. It says what has become of the users when that fails: nobody takes a device from them (I13).
package succession
