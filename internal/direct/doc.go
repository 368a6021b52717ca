// Package direct leads extents of a clone that are durably hydrated straight from its layer to the
// destination: their requests reach neither the daemon nor ublk any more. Such an extent never
// changes its state again (H is final), so nothing has to be undone when a daemon dies: its users go
// on there, and the others wait for the next daemon. `finish` is the last exchange of many.
//
// Choose and Worth say which extents and when; Exchange gives the layer another table, while it is
// in use:
//
//	                                              killed behind it, the next daemon finds
//	1  load a table with the new extents, which   a table that is inactive, and gives it up (dm.Over.Open). The live
//	   opens the destination                      one goes on
//	2  suspend the layer, without freezing file   a layer that is suspended: it gives up the inactive table and resumes
//	   systems: its requests have been answered,  the layer with the one of before (dm.Over.Lay). Nothing was at work
//	   or wait in device-mapper
//	3  resume it: the new table is live           direct extents, which it leaves, when its map says that they are
//	                                              hydrated. A machine that restarts has no layer: it begins anew
//
// Users wait from 2 to 3, as long as the requests at work take and at most SuspendLimit; if they
// have not ended by then, the suspension is taken back with the table, and the exchange is tried
// again later. What fails in 3 is taken back too.
//
// Why no write is lost. What goes direct was committed before 1, and a region is marked when the
// last write, copy or zeroing of it has ended (I3), so nothing of the daemon's own is on its way
// there. Requests of users that had come through the daemon have been answered at the end of 2. A
// FLUSH goes to both sides, as device-mapper sends it to each device of its table.
//
// The last unit of the device never goes direct. So a table tells by itself whether a clone is
// finished: one that leads to the destination as a whole is the one that `finish` leaves.
package direct
