package main

import (
	"bufio"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"time"
)

// logServers is how many servers share the hits of an import: two with each format, of
// which one has compressed its log.
const logServers = 4

// nginxFormat is the one that docs/migrate.md recommends.
const nginxFormat = `$remote_addr [$msec] "$request" $status "$http_referer" "$http_user_agent" "$http_accept_language" $request_time`

// serverLogs are logs of one format.
type serverLogs struct {
	files []string
	flags []string // of sluice import that tell the format
	lines int
}

// writeLogs writes the access logs of servers among which hits were dealt at random, a
// hundred a second, no two alike. size is in bytes, before compression.
func writeLogs(ctx context.Context, dir string, list []sample, lines int) (logs []serverLogs, size int64, err error) {
	const perSecond = 100
	at := time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC)
	rng := rand.New(rand.NewPCG(uint64(lines), 0)) // the same lines in every run
	logs = []serverLogs{{}, {flags: []string{"--nginx-format", nginxFormat}}}
	var files [logServers]*logFile
	for i := range files {
		l := &logs[i%len(logs)]
		var path string
		if files[i], path, err = createLog(dir, i, i >= len(logs)); err != nil {
			return nil, 0, err
		}
		l.files = append(l.files, path)
	}
	for i := range lines {
		if i%1000 == 0 && ctx.Err() != nil {
			err = context.Cause(ctx)
			break
		}
		s := &list[i%len(list)]
		ip := fmt.Sprintf("%d.%d.%d.%d", 1+rng.IntN(223), rng.IntN(256), rng.IntN(256), rng.IntN(256))
		request := fmt.Sprintf("GET %s?%s HTTP/1.1", s.Path, s.vary(rng))
		now := at.Add(time.Duration(i) * time.Second / perSecond)
		server := rng.IntN(logServers)
		format := server % len(logs)
		var line string
		if format == 0 {
			line = fmt.Sprintf("%s - - [%s] \"%s\" 200 43 \"%s\" \"%s\"\n", ip, now.Format("02/Jan/2006:15:04:05 -0700"), request, or(s.Referer), or(s.UserAgent))
		} else {
			line = fmt.Sprintf("%s [%d.%03d] \"%s\" 200 \"%s\" \"%s\" \"%s\" 0.000\n", ip, now.Unix(), now.Nanosecond()/int(time.Millisecond), request, or(s.Referer), or(s.UserAgent), or(s.AcceptLanguage))
		}
		logs[format].lines++
		size += int64(len(line))
		if _, err = io.WriteString(files[server].to, line); err != nil {
			break
		}
	}
	for _, f := range files {
		err = errors.Join(err, f.close())
	}
	return logs, size, err
}

// or writes what is missing as servers do.
func or(header string) string {
	if header == "" {
		return "-"
	}
	return header
}

// A logFile is one that is being written.
type logFile struct {
	to     io.Writer
	packed *gzip.Writer // nil: it is not compressed
	buffer *bufio.Writer
	file   *os.File
}

func createLog(dir string, server int, compressed bool) (*logFile, string, error) {
	path := filepath.Join(dir, fmt.Sprintf("access-%d.log", server+1))
	if compressed {
		path += ".1.gz"
	}
	f, err := os.Create(path)
	if err != nil {
		return nil, "", err
	}
	l := &logFile{buffer: bufio.NewWriter(f), file: f}
	l.to = l.buffer
	if compressed {
		l.packed, _ = gzip.NewWriterLevel(l.buffer, gzip.BestSpeed) // the level is one
		l.to = l.packed
	}
	return l, path, nil
}

func (l *logFile) close() error {
	var err error
	if l.packed != nil {
		err = l.packed.Close()
	}
	return errors.Join(err, l.buffer.Flush(), l.file.Close())
}
