package main

import (
	"errors"
	"fmt"
	"io/fs"

	"sluice/internal/config"
	"sluice/queue"
)

// queueKeys makes the queue's keys of what the key file holds.
func queueKeys(secrets []config.Secret) (queue.Keys, error) {
	raw := make([][]byte, len(secrets))
	for i, s := range secrets {
		raw[i] = []byte(s.Reveal())
	}
	keys, err := queue.NewKeys(raw...)
	if err != nil {
		return queue.Keys{}, &failure{exitSettings, "settings", fmt.Errorf("queue.encryption-key-file: %w", err), "openssl rand -hex 32, for another key"}
	}
	return keys, nil
}

// missingKey is what to do about a queue whose key is missing.
const missingKey = "the file with that key as queue.encryption-key-file; docs/operations.md, \"Encryption at rest\""

// encryption looks at whether what is kept can be read with the keys.
func (c *checkCommand) encryption(secrets config.Secrets) finding {
	f := finding{Name: "encryption", Subject: c.QueueKeyFile, Level: levelFault}
	if c.QueueKeyFile != "" && len(secrets.QueueKeys) == 0 {
		f.Level, f.Text = levelUnset, "the key file cannot be read" // named as a fault already
		return f
	}
	keys, err := queueKeys(secrets.QueueKeys)
	if err == nil {
		err = queue.CheckKeys(c.DataDir, keys)
	}
	failed, isFailure := errors.AsType[*failure](err)
	switch {
	case isFailure:
		f.Text, f.Try = failed.err.Error(), failed.try
	case errors.Is(err, fs.ErrPermission):
		f.Level, f.Text = levelUnset, "cannot be looked at by this user"
	case err != nil:
		f.Text = err.Error()
		if errors.Is(err, queue.ErrKey) {
			f.Try = missingKey
		}
	case len(secrets.QueueKeys) == 0:
		f.Level, f.Text = levelUnset, "not set: hits are kept in clear"
	default:
		f.Level, f.Text = levelOK, "keys "+keys.String()+"; the first encrypts"
	}
	return f
}
