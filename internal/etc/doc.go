// Package etc is the directory of definitions, /etc/ublk-clone: it reads NAME.toml, retires the
// definition of a clone that is finished, reads systemd's clonetab, and is the generator that tells
// systemd what each clone needs.
package etc
