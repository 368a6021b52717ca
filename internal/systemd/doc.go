// Package systemd asks systemd for what a daemon needs of it: a scope of its own, its unit, and systemctl.
package systemd
