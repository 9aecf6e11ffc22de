package certs

import (
	"errors"
	"strings"
	"testing"

	"go.uber.org/zap"

	"sluice/internal/testkit"
)

func TestLinesOfCertmagic(t *testing.T) {
	kept, log := testkit.NewLog(t)
	z := newZap(log).Named("part")
	z.Info("step", zap.Strings("identifiers", []string{"a.example"}))
	z.Warn("odd")
	z.Error("attempt", zap.Error(errors.New("no answer")))
	z.Error("challenge", zap.String("remote_addr", "192.0.2.7:1"), zap.String("server_name", "x"))
	z.With(zap.String("remote_ip", "192.0.2.8")).Warn("handshake", zap.String("user_agent", "agent"))
	for _, want := range []string{
		`level=DEBUG msg=step library=certmagic identifiers=[a.example]`, `level=INFO msg=odd`, `level=WARN msg=attempt library=certmagic err="no answer"`,
		`level=DEBUG msg=challenge library=certmagic server_name=x`, `level=DEBUG msg=handshake`,
	} {
		if kept.Count(want) != 1 {
			t.Errorf("no line with %s", want)
		}
	}
	for _, secret := range []string{"192.0.2", "agent"} {
		if strings.Contains(kept.String(), secret) {
			t.Errorf("%s is logged", secret)
		}
	}
}
