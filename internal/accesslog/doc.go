// Package accesslog reads the access logs of web servers, so that tracking
// requests that a server has logged can be sent to Matomo as they came in.
//
// # Contract
//
// A [Format] is what the lines of a log look like. [Named] has the usual ones,
// [Nginx] and [Apache] make one from what the server's configuration says, and
// [Detect] finds out. A [Parser] reads the lines of one file:
//
//   - A value comes out as the bytes that the client sent. The escapes that the
//     server has written are undone, and no others. Where a server has replaced
//     bytes that it could not write, [Record.Inexact] says so.
//   - A line that is not wholly in the format is an error, and so is one without
//     a request or with an impossible time. There are no guesses within a line.
//   - An error names the part of the line and a position, and never has content
//     of the line in it, since that is visitors' data.
//
// What no format tells is what its server did not log. A header that is not held is
// not the same as one that the client did not send: see [Record.Header].
//
// # Limits
//
//   - nginx and Apache write "-" for a header that was not sent and for one that
//     is a hyphen; it is read as not sent. JSON that nginx makes has "" for
//     headers that were not sent and for empty ones, read as not sent too.
//   - A value without quotes around it ends at the first text that the format
//     has behind it, and the value may have the same in it.
//   - $uri, %U and cs-uri-stem are paths that the server has decoded, and Apache's
//     %q ends at a "#". Queries are as they were sent.
//   - IIS writes "+" for a blank in a User-Agent, and for a plus sign.
//   - CloudFront has not always encoded what it logs in the same way. What tells is
//     each value by itself: one with an escape of a character that CloudFront
//     does not encode is taken for not encoded.
//   - Sluice's own log has a value that is not UTF-8 as if it were Latin-1; it comes
//     out as UTF-8. Its secrets are masked.
//
// # Concurrency and lifetime
//
// A Format never changes, and many goroutines may use it. A Parser belongs to
// one file and one goroutine. The bytes of a [Record] point into the line or into
// the record's own memory: they are good until the line changes or the record is
// given to Parse again.
package accesslog
