package accesslog

import "bytes"

// unescape undoes what nginx's log module (escape=default) and Apache's mod_log_config do
// to values: \xHH for any byte, and Apache's \" \\ \n \r \t \b \v and \f. A backslash before
// anything else stands for itself, as older servers wrote it. What needs nothing is given as
// it is; else it is appended to text.
func unescape(b []byte, text *[]byte) []byte {
	if bytes.IndexByte(b, '\\') < 0 {
		return b
	}
	from := len(*text)
	for i := 0; i < len(b); i++ {
		c := b[i]
		if c != '\\' || i+1 == len(b) {
			*text = append(*text, c)
			continue
		}
		i++
		switch n := b[i]; n {
		case 'x':
			if i+2 < len(b) {
				if v, ok := hexByte(b[i+1], b[i+2]); ok {
					*text = append(*text, v)
					i += 2
					continue
				}
			}
			*text = append(*text, '\\', n)
		case '"', '\\':
			*text = append(*text, n)
		case 'n':
			*text = append(*text, '\n')
		case 'r':
			*text = append(*text, '\r')
		case 't':
			*text = append(*text, '\t')
		case 'b':
			*text = append(*text, '\b')
		case 'v':
			*text = append(*text, '\v')
		case 'f':
			*text = append(*text, '\f')
		default:
			*text = append(*text, '\\', n)
		}
	}
	return (*text)[from:]
}

func hexByte(a, b byte) (byte, bool) {
	hi, ok1 := hexDigit(a)
	lo, ok2 := hexDigit(b)
	return hi<<4 | lo, ok1 && ok2
}

func hexDigit(c byte) (byte, bool) {
	switch {
	case '0' <= c && c <= '9':
		return c - '0', true
	case 'a' <= c && c <= 'f':
		return c - 'a' + 10, true
	case 'A' <= c && c <= 'F':
		return c - 'A' + 10, true
	}
	return 0, false
}
