package definition

// The switches of definition.Copied and definition.ZerosAsData.
const (
	ZeroCopyFlag     = "zero-copy"
	DetectZeroesFlag = "detect-zeroes"
)

// Flags that switch a setting off.
const (
	NoHydrationFlag = "no-hydration"
	NoPassdownFlag  = "no-discard-passdown"
)
