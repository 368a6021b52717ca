package definition

// The switches of Copied and ZerosAsData.
const (
	ZeroCopyFlag     = "zero-copy"
	DetectZeroesFlag = "detect-zeroes"
)

// Flags that switch a setting off.
const (
	NoHydrationFlag = "no-hydration"
	NoPassdownFlag  = "no-discard-passdown"
)
