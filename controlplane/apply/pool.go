package apply

// pool hands out the indices of an array map, from 1 on: index 0 says "none".
type pool struct {
	next  uint32 // the lowest index never handed out
	limit uint32 // of the map
	free  []uint32
}

// newPool returns a pool of the indices below limit that are not in use.
func newPool[V any](limit uint32, used map[uint32]V) pool {
	p := pool{next: 1, limit: max(limit, 1)}
	for index := range used {
		p.next = max(p.next, index+1)
	}
	for index := p.next - 1; index > 0; index-- {
		if _, taken := used[index]; !taken {
			p.free = append(p.free, index)
		}
	}
	return p
}

// size returns how many indices there are, free or not.
func (p *pool) size() int { return int(p.limit) - 1 }

// room returns how many indices are free.
func (p *pool) room() int { return len(p.free) + int(p.limit-p.next) }

// take returns a free index; there must be one.
func (p *pool) take() uint32 {
	if last := len(p.free) - 1; last >= 0 {
		index := p.free[last]
		p.free = p.free[:last]
		return index
	}
	p.next++
	return p.next - 1
}

// put gives an index back.
func (p *pool) put(index uint32) {
	p.free = append(p.free, index)
}
