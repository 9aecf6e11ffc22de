package main

import (
	"cmp"
	"errors"
	"net/http"
	"os"
	"os/user"
	"path/filepath"
	"strings"

	"github.com/alecthomas/kong"

	"sluice/internal/admin"
	"sluice/internal/config"
)

// controlFile is the name, in the data directory, of the key that puts its reader in
// control of the running Sluice.
const controlFile = "control.key"

// dial makes a client for the running Sluice that the settings name. Its key is the
// admin token, or else the control key if this user may read it.
func dial(c *config.Client, p *process, l *config.Loader, k *kong.Context) (*admin.Client, error) {
	c.Complete(p.env)
	token, faults := l.CheckClient(k, c)
	if len(faults) > 0 {
		return nil, settingsFailure(faults, l)
	}
	key := token.Reveal()
	if key == "" {
		// Without it, what anybody may read can still be read.
		text, _ := os.ReadFile(filepath.Join(c.DataDir, controlFile))
		key = strings.TrimSpace(string(text))
	}
	trust, err := adminClientTLS(&c.Admin)
	if err != nil {
		return nil, &failure{exitSettings, "settings", err, "sluice check"}
	}
	return admin.NewClient(string(c.Admin.Listen), key, trust), nil
}

// remoteFailure gives an error of the client its exit code and a way on.
func remoteFailure(what string, c *config.Client, err error) error {
	if _, ok := errors.AsType[*failure](err); ok {
		return err
	}
	if errors.Is(err, admin.ErrNotRunning) {
		return &failure{exitNotNow, what + " at " + string(c.Admin.Listen), err, "sluice serve, or --admin.listen as the running one has it"}
	}
	refused, ok := errors.AsType[*admin.RefusedError](err)
	switch {
	case !ok:
		return &failure{exitNotNow, what, err, ""}
	case refused.Code == http.StatusUnauthorized || refused.Code == http.StatusForbidden:
		return &failure{exitDenied, what, err, refused.Problem.Try}
	default:
		return &failure{exitFailed, what, err, refused.Problem.Try}
	}
}

// who names the person behind a command, for the log of the daemon.
func who(p *process) string {
	name := cmp.Or(lookup(p.env, "SUDO_USER"), lookup(p.env, "USER"))
	if u, err := user.Current(); err == nil && name == "" {
		name = u.Username
	}
	host, _ := os.Hostname()
	return cmp.Or(name, "somebody") + "@" + cmp.Or(host, "unknown")
}
