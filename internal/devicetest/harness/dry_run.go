package harness

import (
	"encoding/json"
)

// DryFigures is what the tests read of `add --dry-run -o json`.
type DryFigures struct {
	Unchanged bool   `json:"unchanged"`
	New       bool   `json:"new"`
	Recover   bool   `json:"recover"`
	Carries   string `json:"dest_carries"`
	Size      int64  `json:"size"`
	Regions   uint64 `json:"regions"`
	Memory    struct {
		Start int64 `json:"start"`
		Most  int64 `json:"most"`
	} `json:"memory"`
	MetadataBytes int64    `json:"metadata_bytes"`
	ZeroCopy      bool     `json:"zero_copy"`
	Hydrated      int64    `json:"hydrated"`
	ToCopy        int64    `json:"to_copy"`
	SourceRate    *int64   `json:"source_rate"`
	Seconds       *int64   `json:"seconds"`
	RateCap       int64    `json:"rate_cap"`
	Warnings      []string `json:"warnings"`
}

// DryRun is `add --dry-run`, which must succeed.
func (c *Clone) DryRun(args ...string) (t DryFigures) {
	c.M.Helper()
	line := append(append([]string{"add", c.Name, "--dry-run", "-o", "json"}, c.Args...), args...)
	out := c.M.MustRun(Command, line...)
	var report struct {
		Schema string     `json:"schema"`
		DryRun DryFigures `json:"dry_run"`
	}
	if err := json.Unmarshal([]byte(out), &report); err != nil || report.Schema != "ublk-clone/v1" {
		c.M.Fatalf("dry run: %v: %s", err, out)
	}
	return report.DryRun
}
