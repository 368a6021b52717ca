package ublk

// flagBits of dev_info.flags.
const (
	flagCompInTask          = 1 << 1
	flagUserRecovery        = 1 << 3
	flagUserRecoveryReissue = 1 << 4
	flagCmdIoctlEncode      = 1 << 6
	flagUserCopy            = 1 << 7
	flagUserRecoveryFailIO  = 1 << 9
	flagUpdateSize          = 1 << 10
	flagAutoBufReg          = 1 << 11
	flagQuiesce             = 1 << 12
	flagPerIODaemon         = 1 << 13
	flagBufRegOffDaemon     = 1 << 14
	flagSafeStopDev         = 1 << 17
	flagNoAutoPartScan      = 1 << 18
)

// Features is what a driver offers, or what a device has. The version is the first kernel with it.
type Features struct {
	UserRecovery        bool // 6.1: the device survives its server
	UserRecoveryReissue bool // 6.1: and its requests are sent again
	IoctlEncode         bool // 6.4: commands are ioctl numbers
	UserCopy            bool // 6.5: data are moved by pread and pwrite
	UserRecoveryFailIO  bool // 6.13: requests fail while there is no server
	UpdateSize          bool // 6.16
	AutoBufReg          bool // 6.16: request pages are registered buffers
	Quiesce             bool // 6.16: orderly hand-over
	SafeStop            bool // 7.0: TRY_STOP_DEV
	NoAutoPartScan      bool // 7.0: no partition scan at the start

	Bits uint64 // all, also those without a name here
}

func decodeFeatures(bits uint64) Features {
	has := func(flag uint64) bool { return bits&flag != 0 }
	return Features{
		UserRecovery:        has(flagUserRecovery),
		UserRecoveryReissue: has(flagUserRecoveryReissue),
		IoctlEncode:         has(flagCmdIoctlEncode),
		UserCopy:            has(flagUserCopy),
		UserRecoveryFailIO:  has(flagUserRecoveryFailIO),
		UpdateSize:          has(flagUpdateSize),
		AutoBufReg:          has(flagAutoBufReg),
		Quiesce:             has(flagQuiesce),
		SafeStop:            has(flagSafeStopDev),
		NoAutoPartScan:      has(flagNoAutoPartScan),
		Bits:                bits,
	}
}

// featureNames tell in an error what is missing.
var featureNames = []struct {
	flag        uint64
	name, since string
}{
	{flagCmdIoctlEncode, "UBLK_F_CMD_IOCTL_ENCODE", "6.4"},
	{flagUserRecovery, "UBLK_F_USER_RECOVERY", "6.1"},
	{flagUserRecoveryReissue, "UBLK_F_USER_RECOVERY_REISSUE", "6.1"},
	{flagQuiesce, "UBLK_F_QUIESCE", "6.16"},
	{flagNoAutoPartScan, "UBLK_F_NO_AUTO_PART_SCAN", "7.0"},
}

// requestFlags is what ADD_DEV is asked for, of what is offered.
func requestFlags(offered Features, o *Options) (uint64, error) {
	flags := uint64(flagCmdIoctlEncode)
	if offered.NoAutoPartScan {
		flags |= flagNoAutoPartScan
	}
	if offered.AutoBufReg && offered.UserCopy && !o.Copy {
		flags |= flagAutoBufReg | flagUserCopy
	}
	if o.Recoverable {
		flags |= flagUserRecovery | flagUserRecoveryReissue
		if offered.Quiesce {
			flags |= flagQuiesce
		}
	}
	return flags, missing(flags, offered.Bits)
}

// Needed is a FeatureError for the first of what a recoverable device needs that is not offered.
func Needed(offered Features) error {
	_, err := requestFlags(offered, &Options{Recoverable: true})
	return err
}

// missing is a FeatureError for the first flag of asked that is not in got. An old driver clears
// what it does not know and says nothing.
func missing(asked, got uint64) error {
	for _, f := range featureNames {
		if asked&^got&f.flag != 0 {
			return &FeatureError{Name: f.name, Since: f.since}
		}
	}
	return nil
}

// servedFlags are those of devices that this package can serve, also where it would not ask for
// them. A driver sets some by itself.
const servedFlags = flagAutoBufReg | flagUserCopy | flagCompInTask | flagUserRecovery | flagUserRecoveryReissue | flagCmdIoctlEncode |
	flagUserRecoveryFailIO | flagUpdateSize | flagQuiesce | flagPerIODaemon | flagBufRegOffDaemon |
	flagSafeStopDev | flagNoAutoPartScan
