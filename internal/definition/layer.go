package definition

import (
	"fmt"
	"path/filepath"
	"regexp"
	"slices"
)

// FinishedText says what stands alone.
func (d *Definition) FinishedText() string {
	if d.DM != "" {
		return d.LayerPath() + " leads to " + d.Dest + ", which stands alone"
	}
	return d.Dest + " stands alone"
}

// layerPattern is what a layer may be called, up to layerNameMax bytes: what device-mapper's own
// program takes without escapes.
var layerPattern = regexp.MustCompile(`^[A-Za-z0-9_#+:=@.-]+$`)

const layerNameMax = 127 // DM_NAME_LEN - 1, linux/dm-ioctl.h

// MapperDir has the links to device-mapper devices.
const MapperDir = "/dev/mapper"

// NameDir has the links by which users know clones.
const NameDir = "/dev/ublk-clone"

// checkLayer refuses what no layer can be called.
func (d *Definition) checkLayer() error {
	if d.DM == "" || d.DM != d.UnderName() && len(d.DM) <= layerNameMax && layerPattern.MatchString(d.DM) && !slices.Contains([]string{".", "..", "control"}, d.DM) {
		return nil
	}
	if d.DM == d.UnderName() {
		return UsageError(fmt.Sprintf("--dm %s: the clone itself has a device of this name, over its destination", d.DM))
	}
	return UsageError(fmt.Sprintf("--dm %q: letters, digits and _#+:=@.- are allowed, 127 at most", d.DM))
}

// UnderName is what the private device-mapper device over the destination of a clone with a layer
// is called.
func (d *Definition) UnderName() string { return d.Name + "-dest" }

// LayerPath is the link to the layer, "" if the clone has none.
func (d *Definition) LayerPath() string {
	if d.DM == "" {
		return ""
	}
	return filepath.Join(MapperDir, d.DM)
}
