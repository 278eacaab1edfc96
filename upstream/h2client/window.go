package h2client

import "transom/rpc/h2wire"

// shortWindow is the window of a stream while memory is short.
const shortWindow = 16 << 10

// weigh makes the windows of all streams short (RFC 9113 6.9.2) while what they hold and nobody receives is too much:
// clients that take nothing could else make transom keep a whole window for each of many streams. Besides shortWindow a
// stream they then hold what was on its way when the server heard of it, and what their windows have grown by: a
// Config.ConnWindow each. c.mu is held.
func (c *Conn) weigh() {
	if c.unacked > 0 || c.state == Closed || c.cfg.StreamWindow <= shortWindow {
		return
	}
	switch {
	case !c.short && c.held > c.cfg.ConnWindow/2:
		c.short = true
		c.announce(shortWindow)
	case c.short && c.held < c.cfg.ConnWindow/8:
		c.short = false
		c.announce(c.cfg.StreamWindow)
		c.resize(c.cfg.StreamWindow) // at once: the server may use it before its acknowledgement is here
	}
}

// announce tells the server the window of its streams.
func (c *Conn) announce(window int) {
	c.out = h2wire.AppendFrame(c.out, 6, h2wire.FrameSettings, 0, 0)
	c.out = h2wire.AppendSetting(c.out, h2wire.SettingInitialWindow, uint32(window))
	c.unacked++
}

// acknowledged hears that the server goes by the SETTINGS that it was sent. c.mu is held.
func (c *Conn) acknowledged() {
	if c.unacked == 0 {
		return
	}
	c.unacked--
	if c.unacked == 0 && c.short && c.startWindow != shortWindow {
		c.resize(shortWindow)
	}
	c.weigh() // much may have changed since
}

// resize changes the windows of all streams, present and future. They may become negative. c.mu is held.
func (c *Conn) resize(window int) {
	delta := window - c.startWindow
	c.startWindow = window
	for _, s := range c.streams {
		s.window += delta
		s.recvWindow += delta
		s.fetch()
		s.pay(0) // a server that has nothing left of a smaller window sends nothing that would bring the next payment
	}
}

// firstChunk is the most memory taken for a message before any of its bytes are here.
func (c *Conn) firstChunk() int {
	if c.short {
		return shortWindow
	}
	return 1 << 20
}
