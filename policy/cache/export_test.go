package cache

// Evict drops all answers from memory, as a lack of room does: what is being fetched is not forgotten, as with a purge.
func (c *Cache) Evict() { c.entries.InvalidateAll() }
