// Package dm works on the device-mapper device that lies over a clone, the layer, which `add --dm`
// lays: users have that open, and `finish` leads it to the destination while they do.
//
//	/dev/mapper/DMNAME  linear  -->  /dev/ublkbN                        until something is hydrated
//	                            -->  /dev/ublkbN, and direct extents    later
//	                                 to the destination
//	                            -->  the destination                    from finish on
//
// It is known as the clone's by its UUID, which has the clone's. It outlives the daemon, as the
// block device does. All is done by ioctls (sys.DM): programs such as dmsetup may lie on the clone,
// and could not be read while it is suspended.
//
// Find looks at a layer, whosever it is, and says where it leads; Over is a daemon's own. Where there
// is a layer, there is a private device over the destination too, through which the daemon reaches
// it: Under.
package dm
