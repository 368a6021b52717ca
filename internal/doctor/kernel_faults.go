package doctor

import (
	"strings"
)

// kernelFault is what is known of some kernels.
type kernelFault struct {
	from, until kernelVersion // of mainline: [from, until)
	releases    []string      // beginnings of others that have it
	level       level
	code        int // of a problem
	text        string
	action      string
}

func (k *kernelFault) of(release string) bool {
	v := parseRelease(release)
	if !v.before(k.from) && v.before(k.until) {
		return true
	}
	for _, begin := range k.releases {
		if strings.HasPrefix(release, begin) {
			return true
		}
	}
	return false
}

// kernelFaults are those that users of clones can meet, and those of which somebody may have heard.
var kernelFaults = []kernelFault{
	{
		from: kernelVersion{6, 18, 4}, until: kernelVersion{6, 18, 6}, releases: []string{"6.17.0-1015-a", "6.17.0-1018-a"}, // azure, aws
		level: LevelProblem, code: 7,
		text:   "This kernel crashes on a NULL pointer when a ublk device is added, and the command never returns.",
		action: "Use another kernel, such as 6.18.6 or later.",
		// Source: ublk_ctrl_add_dev, ublk_drv.c: queues are made before their tags; zabbly/linux
		// issue 52.
	},
	{
		until: kernelVersion{6, 12, 0}, level: LevelWarning,
		text:   "Clones are not tested on kernels before 6.12.",
		action: "Use 6.12 or later if you can; from 6.16 on the memory of users is not copied.",
		// Source: docs/requirements.md.
	},
	{
		from: kernelVersion{6, 8, 0}, until: kernelVersion{6, 12, 0}, level: LevelWarning,
		text:   "Requests that are cancelled while they come back may crash these kernels (CVE-2025-37906).",
		action: "See whether your distribution has fixed it.",
		// Source: the CVE's record.
	},
	{
		until: kernelVersion{6, 15, 0}, level: LevelWarning,
		text: "A recovery that is itself killed in one short moment crashes this kernel, for clones with several queues. " +
			"A clone with one queue, the default, is not affected.",
		action: "Leave --queues as it is.",
		// Source: docs/data-safety.md; nr_queues_ready in ublk_ctrl_start_recovery, ublk_drv.c,
		// 6.12.
	},
	{
		from: kernelVersion{6, 5, 0}, until: kernelVersion{6, 18, 0}, level: LevelWarning,
		text: "A daemon that is killed during `add`, while the kernel looks for partitions on its new device, leaves a device that " +
			"only a reboot ends (seen on 6.12, not on 6.18). No data is lost: nobody had the device yet.",
		action: "Do not kill an `add` of a slow source; give it the time that it takes.",
		// Source: docs/data-safety.md.
	},
	{
		from: kernelVersion{7, 3, 0}, until: kernelVersion{7, 4, 0}, level: levelOK,
		text: "This kernel takes a request that was answered in part for a whole one (seen on 7.3.4). " +
			"The daemon never does that: nothing is lost.",
		// Source: __ublk_complete_rq, ublk_drv.c, 7.3.4.
	},
}
