// Package systemd moves a daemon to a scope of its own, and starts and stops units with systemctl.
package systemd
