// Package dm works on the device-mapper device that lies over a clone, the layer: it finds it, says whose it is and
// where it leads, and removes it. It uses ioctls only, because programs such as dmsetup may lie on the clone.
package dm
