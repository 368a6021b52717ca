// Package host reads what tells this machine, and this boot of it, from others.
package host
