package main

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"sluice/internal/testkit"
)

const (
	trackerPath = "/matomo.js"
	trackerSize = 66 << 10 // of matomo.js as Matomo ships it
	pagePath    = "/index.php"
	pageSize    = 20 << 10
)

// minServed is the target of files and pages over HTTPS: the part of nginx's requests
// a second.
const minServed = 0.60

// filesPart compares matomo.js from nginx's disk and from sluice's copy, both over
// HTTPS.
func filesPart(encoding string, connections int) func(context.Context, *bench) error {
	return func(ctx context.Context, b *bench) error {
		name := "plain"
		if encoding != "" {
			name = encoding
		}
		return served(ctx, b, fmt.Sprintf("files-%s-%d", name, connections), trackerPath, encoding, connections)
	}
}

// pagesPart compares passing a page on to the same server behind, both over HTTPS.
func pagesPart(ctx context.Context, b *bench) error {
	return served(ctx, b, "pages-64", pagePath, "", 64)
}

// served compares what both give for a path; the answers must be the same length.
func served(ctx context.Context, b *bench, part, path, encoding string, connections int) error {
	if err := writeSite(filepath.Join(b.dir, "www")); err != nil {
		return err
	}
	script := filepath.Join(b.dir, "get.lua")
	request := fmt.Sprintf("GET %s HTTP/1.1\r\nHost: %s\r\nUser-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0\r\n", path, host)
	if encoding != "" {
		request += "Accept-Encoding: " + encoding + "\r\n"
	}
	if err := writeScript(script, [][]byte{[]byte(request + "\r\n")}); err != nil {
		return err
	}
	behind, err := startBackend(ctx, b.dir)
	if err != nil {
		return err
	}
	defer behind.stop()
	n, err := startNginx(ctx, b.dir, behind.http)
	if err != nil {
		return err
	}
	defer n.stop()
	e, err := startEdge(ctx, b, part, "http://"+behind.http)
	if err != nil {
		return err
	}
	defer e.stop()
	urls := [2]string{"https://" + n.https + path, "https://" + e.https + path}
	size, err := sameAnswers(ctx, urls, encoding)
	if err != nil {
		return e.fault(err)
	}
	memory := sampleMemory(e.pid())
	yardstick, ours, err := b.sideBySide(ctx, part, script, urls, connections, n, e)
	peak := memory.end()
	if err != nil {
		return err
	}
	b.table.compared(part, minServed, yardstick, ours)
	b.table.below(part+", anonymous memory, MiB", float64(peak)/mib, maxAnon, "%.0f", fmt.Sprintf("bodies of %s bytes", thousands(int64(size))))
	e.stop()
	return errors.Join(checkAnswers(yardstick, ours), os.RemoveAll(e.data))
}

// writeSite writes the files that both sides serve.
func writeSite(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	tracker := testkit.TrackerFile(trackerSize)
	var packed bytes.Buffer
	z, err := gzip.NewWriterLevel(&packed, gzip.BestCompression)
	if err != nil {
		return err
	}
	_, err = z.Write(tracker)
	return errors.Join(err, z.Close(),
		os.Chmod(filepath.Dir(dir), 0o755), // nginx's workers may be another user
		os.WriteFile(filepath.Join(dir, trackerPath), tracker, 0o644),
		os.WriteFile(filepath.Join(dir, trackerPath+".gz"), packed.Bytes(), 0o644),
		os.WriteFile(filepath.Join(dir, pagePath), page(), 0o644))
}

// page is a page of HTML.
func page() []byte {
	var b bytes.Buffer
	b.WriteString("<!DOCTYPE html><html><head><title>Page</title></head><body>\n")
	for i := 0; b.Len() < pageSize-16; i++ {
		fmt.Fprintf(&b, "<p id=\"p%d\">A line of the page.</p>\n", i)
	}
	b.WriteString("</body></html>\n")
	return b.Bytes()
}

// sameAnswers waits until both sides give the answer that is measured, in the encoding
// and, if it has none, of the same length. It returns sluice's length.
func sameAnswers(ctx context.Context, urls [2]string, encoding string) (int, error) {
	const patience = 20 * time.Second
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	client := &http.Client{Transport: &http.Transport{
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS13}, // this program's own servers
	}}
	defer client.CloseIdleConnections()
	var last string
	for clock := time.NewTicker(100 * time.Millisecond); ; {
		var bodies [2][]byte
		good := true
		for i, url := range urls {
			got, body, err := ask(ctx, client, url, encoding)
			if err != nil {
				clock.Stop()
				return 0, errors.Join(fmt.Errorf("ask %s: %w", url, err), errors.New(last))
			}
			if got != encoding {
				last, good = fmt.Sprintf("%s answers in %q", url, got), false
			}
			bodies[i] = body
		}
		if good && encoding == "" && !bytes.Equal(bodies[0], bodies[1]) {
			clock.Stop()
			return 0, fmt.Errorf("both sides differ: %d and %d bytes", len(bodies[0]), len(bodies[1]))
		}
		if good {
			clock.Stop()
			return len(bodies[1]), nil
		}
		<-clock.C
	}
}

// ask gives an answer's encoding and body as it came.
func ask(ctx context.Context, client *http.Client, url, encoding string) (got string, body []byte, err error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", nil, err
	}
	r.Host = host
	r.Header.Set("Accept-Encoding", encoding) // nothing is decoded then
	resp, err := client.Do(r)
	if err != nil {
		return "", nil, err
	}
	defer resp.Body.Close() // it was only read
	body, err = io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("status %d: %s", resp.StatusCode, strings.TrimSpace(string(body[:min(len(body), 200)])))
	}
	return resp.Header.Get("Content-Encoding"), body, err
}
