package main

import (
	"errors"
	"fmt"
	"net"

	"sluice/internal/config"
	"sluice/internal/systemd"
	"sluice/proxy"
)

// The names that the units of sockets give them (FileDescriptorName=).
const (
	socketHTTPS = "https"
	socketHTTP  = "http"
	socketAdmin = "admin"
)

// sockets are the listeners that the service manager has opened for this process.
type sockets struct {
	public proxy.Listeners
	admin  net.Listener // nil without one
}

// takeSockets takes the sockets that were handed over. Each stands in for its setting:
// listen, listen-http, admin.listen.
func (e *edge) takeSockets() error {
	given, err := systemd.Listeners(e.env, e.pid, socketHTTPS, socketHTTP, socketAdmin)
	if err != nil {
		return &failure{exitSettings, "sockets", err, `docs/operations.md, "Upgrade without a dropped connection"`}
	}
	s := e.settings
	for name, l := range given {
		address := config.Address(l.Addr().String())
		switch {
		case name == socketAdmin:
			e.sockets.admin, s.Admin.Listen = l, address
		case name == socketHTTPS && s.TLS.Mode == "off":
			return &failure{exitSettings, "sockets", errors.New("https was handed over, but tls.mode is off: want a socket named http"), ""}
		case name == socketHTTPS:
			e.sockets.public.HTTPS, s.Listen = l, address
		case s.TLS.Mode == "off":
			e.sockets.public.HTTP, s.Listen = l, address // the main listener
		default:
			e.sockets.public.HTTP, s.ListenHTTP = l, address
		}
		if a := &s.Admin; name == socketAdmin && !config.IsLoopback(address) && a.TokenFile == "" && a.ClientCAFile == "" {
			return &failure{exitSettings, "sockets", fmt.Errorf("others can reach the socket admin at %s: want admin.token-file or admin.client-ca-file with it", address), ""}
		}
		e.log.Info("listening on a socket that was handed over", "name", name, "address", address)
	}
	return nil
}
