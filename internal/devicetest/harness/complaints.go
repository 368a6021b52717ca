package harness

// Complaints are what the kernel says when it or a device has gone wrong.
var Complaints = []string{
	"BUG", "WARNING:", "Oops", "blocked for more than", "general protection", "soft lockup", "stall on CPU", "Out of memory",
	"I/O error", "EXT4-fs error", "EXT4-fs warning", "lost async page write",
}
