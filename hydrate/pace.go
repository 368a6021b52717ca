package hydrate

import "time"

// saving is the time whose bytes a pace keeps for later: a thread that was kept from running for so
// long still keeps the rate (with 100 ms a busy guest lost 12 % of it).
const saving = 300 * time.Millisecond

// pace is an allowance of bytes that grows with time. What is started is taken from it at once, and
// may be more than is there: the debt is waited for, so that over any longer time no more than rate
// is taken.
type pace struct {
	rate int64     // bytes a second; 0: none
	left float64   // bytes at the time at; negative: a debt
	at   time.Time // of left
}

// set changes the rate. A debt is forgotten with the old one.
func (p *pace) set(rate int64, now time.Time) {
	if rate != p.rate {
		*p = pace{rate: rate, at: now}
	}
}

// fill brings left up to date. It keeps the bytes of saving, or as many as keep if that is more.
func (p *pace) fill(now time.Time, keep uint64) {
	p.left += float64(p.rate) * now.Sub(p.at).Seconds()
	p.left = min(p.left, max(float64(keep), float64(p.rate)*saving.Seconds()))
	p.at = now
}

// take books n bytes.
func (p *pace) take(n uint64, now time.Time) {
	if p.rate > 0 {
		p.fill(now, n)
		p.left -= float64(n)
	}
}

// debt is how long it takes until the debt is paid; without a rate there is none.
func (p *pace) debt(now time.Time) time.Duration {
	if p.rate == 0 {
		return 0
	}
	p.fill(now, 0)
	return time.Duration(max(0, -p.left) / float64(p.rate) * float64(time.Second))
}

// behind says that of late less than the rate has been taken, by n bytes at least.
func (p *pace) behind(n uint64, now time.Time) bool {
	if p.rate == 0 {
		return false
	}
	p.fill(now, n)
	return p.left >= float64(n)
}

// advance forgets a debt: what was taken beyond the rate is no reason to take less later.
func (p *pace) advance() { p.left = max(0, p.left) }
