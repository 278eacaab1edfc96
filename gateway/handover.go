package gateway

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strings"

	"transom/listeners"
)

// Sockets are bound sockets that a process was started with: those of the transom that it replaces, or of systemd's socket
// activation.
type Sockets struct {
	all []*boundSocket
	// Turn is closed when UDP sockets may be read from; nil is at once.
	Turn <-chan struct{}
}

// boundSocket is one of them; of lis and packet one is nil.
type boundSocket struct {
	name   string
	lis    net.Listener
	packet net.PacketConn
	taken  bool
}

func (b *boundSocket) addr() net.Addr {
	if b.lis != nil {
		return b.lis.Addr()
	}
	return b.packet.LocalAddr()
}

func (b *boundSocket) close() {
	if b.lis != nil {
		_ = b.lis.Close()
	} else {
		_ = b.packet.Close()
	}
}

// Add takes over a file that is a bound socket, and closes it. The name says whose it is: what [Gateway.Files] gave it, or a
// listener's name; any other goes to the listener that has its address.
func (s *Sockets) Add(name string, f *os.File) error {
	defer func() { _ = f.Close() }()
	b := &boundSocket{name: name}
	var err error
	if b.lis, err = net.FileListener(f); err != nil {
		b.lis = nil
		if b.packet, err = net.FilePacketConn(f); err != nil {
			return fmt.Errorf("socket %s: %w", name, err)
		}
	}
	s.all = append(s.all, b)
	return nil
}

// take gives the socket of a listener, nil if there is none. key is as in Files, name the listener's own, may be empty.
func (s *Sockets) take(packet bool, key, name, address string) *boundSocket {
	if s == nil {
		return nil
	}
	match := []func(b *boundSocket) bool{
		func(b *boundSocket) bool { return b.name == key },
		func(b *boundSocket) bool { return name != "" && b.name == name },
		func(b *boundSocket) bool { return sameAddress(b.addr(), address) },
	}
	for _, ok := range match {
		for _, b := range s.all {
			if !b.taken && (b.packet != nil) == packet && ok(b) {
				b.taken = true
				return b
			}
		}
	}
	return nil
}

// sameAddress reports whether a socket is bound to what is configured as address. Port 0 is none's.
func sameAddress(bound net.Addr, address string) bool {
	want, err := net.ResolveTCPAddr("tcp", address)
	if err != nil || want.Port == 0 {
		return false
	}
	var ip net.IP
	var port int
	switch a := bound.(type) {
	case *net.TCPAddr:
		ip, port = a.IP, a.Port
	case *net.UDPAddr:
		ip, port = a.IP, a.Port
	}
	anywhere := len(want.IP) == 0 || want.IP.IsUnspecified()
	return port == want.Port && (ip.Equal(want.IP) || anywhere && ip.IsUnspecified())
}

// listener gives the sockets of a listener; nil if there are none for it.
func (s *Sockets) listener(key, name, address string) *listeners.Sockets {
	tcp := s.take(false, key, name, address)
	if tcp == nil {
		return nil
	}
	l := &listeners.Sockets{TCP: tcp.lis}
	if s.Turn != nil {
		l.Turn = append(l.Turn, s.Turn)
	}
	if udp := s.take(true, key+udpSuffix, name, tcp.lis.Addr().String()); udp != nil {
		l.UDP = udp.packet
	}
	return l
}

// closeRest closes what no listener has taken.
func (s *Sockets) closeRest(ctx context.Context, log *slog.Logger) {
	if s == nil {
		return
	}
	for _, b := range s.all {
		if !b.taken {
			log.LogAttrs(ctx, slog.LevelWarn, "a socket that was handed over belongs to no listener and is closed",
				slog.String("name", b.name), slog.String("address", b.addr().String()))
			b.close()
		}
	}
	s.all = nil
}

const (
	udpSuffix = "/udp"
	adminKey  = "admin"
)

// Files are the bound sockets by name, for the process that is to replace this one. The caller closes them.
func (g *Gateway) Files() (names []string, files []*os.File, err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	defer func() {
		if err != nil {
			for _, f := range files {
				_ = f.Close()
			}
		}
	}()
	add := func(name string, f *os.File) {
		if f != nil {
			names, files = append(names, name), append(files, f)
		}
	}
	for _, s := range g.servers {
		tcp, udp, err := s.server.Files()
		add(s.key, tcp)
		add(s.key+udpSuffix, udp)
		if err != nil {
			return nil, files, err
		}
	}
	if g.admin != nil {
		f, err := g.admin.file()
		add(adminKey, f)
		if err != nil {
			return nil, files, err
		}
	}
	return names, files, nil
}

func (a *admin) file() (*os.File, error) {
	f, ok := a.lis.(interface{ File() (*os.File, error) })
	if !ok {
		return nil, fmt.Errorf("admin listener: %T has no file", a.lis)
	}
	return f.File()
}

// Replaced is Drain for a process whose sockets are served by another: nothing is closed but what is this process's own, and
// the other waits for QUICOver.
func (g *Gateway) Replaced() {
	g.replaced.Store(true)
	g.Drain()
}

// QUICOver is closed when a drain has ended with QUIC, so that another process may read from the UDP sockets.
func (g *Gateway) QUICOver() <-chan struct{} { return g.quicOver }

// Up is closed once the gateway serves and is ready.
func (g *Gateway) Up() <-chan struct{} { return g.up }

// Down is closed when a drain begins.
func (g *Gateway) Down() <-chan struct{} { return g.down }

// keepSocketFile makes the end of the admin listener leave the path of its Unix socket, which is another's now.
func (a *admin) keepSocketFile() {
	if u, ok := a.lis.(*net.UnixListener); ok {
		u.SetUnlinkOnClose(false)
	}
}

// isUnix reports whether an admin address is that of a Unix socket, and its path.
func isUnix(address string) (string, bool) {
	path, ok := strings.CutPrefix(address, "unix:")
	return "/" + strings.TrimLeft(path, "/"), ok
}
