package bench

import "slices"

// Goal is a ratio to a peer in the same guest and run.
type Goal struct {
	What  string
	Ours  Key
	Peers []Key // the best of these that were measured
	// Least and Most by S; a setup whose S is in neither has no such goal.
	Least, Most map[int]float64
}

// Verdict on a goal.
type Verdict struct {
	Goal  Goal
	Ours  float64
	Peer  float64
	Of    Key // the peer that counted
	Ratio float64
	Limit float64
	Least bool // the limit is a lower one
	Met   bool
	// Missing says which figure was not measured; then nothing but Limit is filled in.
	Missing string
}

const kib = 1 << 10

func both(limit float64) map[int]float64  { return map[int]float64{1: limit, 4: limit} }
func each(s4, s1 float64) map[int]float64 { return map[int]float64{4: s4, 1: s1} }
func only4(limit float64) map[int]float64 { return map[int]float64{4: limit} }
func of(candidate, state, job string, region int64, unit string) Key {
	return Key{Candidate: candidate, State: state, Job: job, Region: region, Unit: unit}
}

// against is the same figure of ours and of dm-clone.
func against(what, job string, region int64, unit string) Goal {
	return Goal{What: what, Ours: of(Ours, Unhydrated, job, region, unit), Peers: []Key{of(DMClone, Unhydrated, job, region, unit)}}
}

func (g Goal) least(limit map[int]float64) Goal { g.Least = limit; return g }
func (g Goal) most(limit map[int]float64) Goal  { g.Most = limit; return g }

// Goals of the project, in the order of the document; DirectGoals are those of the other one.
func Goals() []Goal {
	all := []Goal{
		against("random write IOPS, 4 KiB regions, to dm-clone", WriteIOPS, 4*kib, IOPS).least(each(0.97, 0.70)),
		{What: "random read IOPS, hydrated, to the raw destination", Ours: of(Ours, Hydrated, ReadIOPS, 4*kib, IOPS),
			Peers: []Key{of(RawDest, "", ReadIOPS, 0, IOPS)}, Least: each(0.97, 0.70)},
		against("random write latency, 4 KiB regions, to dm-clone", WriteLatency, 4*kib, Mean).most(each(1.05, 1.17)),
		against("random read latency of unhydrated regions, to dm-clone", ReadLatency, 4*kib, Mean).most(each(1.01, 1.03)),
		against("sequential 256 KiB write, 4 KiB regions, to dm-clone", WriteMBps, 4*kib, MBps).least(each(1.40, 1.60)),
		against("sequential 256 KiB read of unhydrated 4 KiB regions, to dm-clone", ReadMBps, 4*kib, MBps).least(both(15)),
		against("latency of a 4 KiB write to unhydrated regions of 8 KiB, to dm-clone", WriteLatency, 8*kib, Mean).most(both(0.97)),
		against("the same, 64 KiB", WriteLatency, 64*kib, Mean).most(both(0.98)),
		against("the same, 128 KiB", WriteLatency, 128*kib, Mean).most(both(1.01)),
		against("IOPS of 4 KiB writes to unhydrated regions of 8 KiB, to dm-clone", WriteIOPS, 8*kib, IOPS).least(both(0.98)),
		against("the same, 64 KiB", WriteIOPS, 64*kib, IOPS).least(both(0.98)),
		against("the same, 128 KiB", WriteIOPS, 128*kib, IOPS).least(both(0.98)),
	}
	return slices.Concat(all, hydrationGoals())
}

func hydrationGoals() []Goal {
	idle := of(Ours, "", Hydration, 4*kib, MBps)
	var tuned, source []Key
	for _, setting := range append([]string{""}, Tuned...) {
		tuned = append(tuned, Key{Candidate: DMClone, Setting: setting, Job: Hydration, Region: 4 * kib, Unit: MBps})
	}
	for _, size := range SourceSizes {
		source = append(source, of(RawSource, "", JobName("read", size, SourceDepth), 0, MBps))
	}
	alone := of(Ours, "", Reader(1, false), 4*kib, Mean)
	with := func(setting, job, unit string) Key {
		return Key{Candidate: Ours, Setting: setting, Job: job, Region: 4 * kib, Unit: unit}
	}
	return []Goal{
		{What: "hydration with our defaults, to the best that dm-clone can be tuned to", Ours: idle, Peers: tuned, Least: both(1.0)},
		{What: "hydration with our defaults, to the best sequential rate of the source", Ours: idle, Peers: source, Least: both(0.95)},
		{What: "hydration beside one depth-1 reader, to idle", Ours: with("", Beside(Hydration, 1), MBps), Peers: []Key{idle}, Least: only4(0.40)},
		{What: "that reader's latency, to its own alone", Ours: with("", Reader(1, true), Mean), Peers: []Key{alone}, Most: only4(2.3)},
		{What: "hydration beside one depth-1 reader, gentle, to idle", Ours: with(Gentle, Beside(Hydration, 1), MBps), Peers: []Key{idle}, Least: only4(0.12)},
		{What: "that reader's latency, to its own alone", Ours: with(Gentle, Reader(1, true), Mean), Peers: []Key{alone}, Most: only4(1.5)},
		{What: "p99 latency of 4 KiB writes of whole unhydrated regions during hydration, to the same without",
			Ours: of(Ours, "", Writer(true), 4*kib, P99), Peers: []Key{of(Ours, "", Writer(false), 4*kib, P99)}, Most: only4(1.5)},
	}
}

// Judge says of each of the goals that the setup has whether it is met.
func (s Set) Judge(at Setup, goals []Goal) []Verdict {
	var all []Verdict
	for _, g := range goals {
		if v, has := s.judge(at, g); has {
			all = append(all, v)
		}
	}
	return all
}

func (s Set) judge(at Setup, g Goal) (v Verdict, has bool) {
	v.Goal = g
	if v.Limit, v.Least = g.Least[at.S]; !v.Least {
		if v.Limit, has = g.Most[at.S]; !has {
			return v, false
		}
	}
	ours, ok := s.Median(at, g.Ours)
	if !ok {
		v.Missing = g.Ours.String()
		return v, true
	}
	peer, key, ok := s.best(at, g.Peers, v.Least)
	if !ok || peer == 0 {
		v.Missing = g.Peers[0].String()
		return v, true
	}
	v.Ours, v.Peer, v.Of, v.Ratio = ours, peer, key, ours/peer
	v.Met = v.Least && v.Ratio >= v.Limit || !v.Least && v.Ratio <= v.Limit
	return v, true
}

// best of the peers: the largest where ours is to be at least something, else the smallest.
func (s Set) best(at Setup, keys []Key, largest bool) (value float64, of Key, found bool) {
	for _, k := range keys {
		m, ok := s.Median(at, k)
		if ok && (!found || (m > value) == largest) {
			value, of, found = m, k, true
		}
	}
	return value, of, found
}
