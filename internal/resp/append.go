// SPDX-License-Identifier: Apache-2.0

package resp

import "strconv"

// AppendBulk appends a bulk string.
func AppendBulk[T ~string | ~[]byte](dst []byte, v T) []byte {
	dst = appendHead(dst, '$', len(v))
	dst = append(dst, v...)
	return append(dst, '\r', '\n')
}

// AppendArray appends the head of an array of n elements.
func AppendArray(dst []byte, n int) []byte { return appendHead(dst, '*', n) }

// AppendPush appends the head of a push of n elements (RESP3).
func AppendPush(dst []byte, n int) []byte { return appendHead(dst, '>', n) }

// AppendMap appends the head of a map of n pairs: an array of 2n elements in RESP2.
func AppendMap(dst []byte, proto, n int) []byte {
	if proto < 3 {
		return appendHead(dst, '*', 2*n)
	}
	return appendHead(dst, '%', n)
}

// AppendInt appends an integer.
func AppendInt(dst []byte, v int64) []byte {
	dst = append(dst, ':')
	dst = strconv.AppendInt(dst, v, 10)
	return append(dst, '\r', '\n')
}

// AppendSimple appends a simple string, which must not hold line ends.
func AppendSimple(dst []byte, v string) []byte {
	dst = append(dst, '+')
	dst = append(dst, v...)
	return append(dst, '\r', '\n')
}

// AppendError appends an error. Its text starts with the error's code; line ends are replaced by spaces, as the server
// does.
func AppendError(dst []byte, text string) []byte {
	dst = append(dst, '-')
	from := len(dst)
	dst = append(dst, text...)
	for i := from; i < len(dst); i++ {
		if dst[i] == '\r' || dst[i] == '\n' {
			dst[i] = ' '
		}
	}
	return append(dst, '\r', '\n')
}

// AppendNull appends a null bulk string (RESP2) or null (RESP3).
func AppendNull(dst []byte, proto int) []byte {
	if proto < 3 {
		return append(dst, "$-1\r\n"...)
	}
	return append(dst, "_\r\n"...)
}

// AppendNullArray appends a null array (RESP2) or null (RESP3).
func AppendNullArray(dst []byte, proto int) []byte {
	if proto < 3 {
		return append(dst, "*-1\r\n"...)
	}
	return append(dst, "_\r\n"...)
}

// AppendCommand appends a command as an array of bulk strings.
func AppendCommand[T ~string | ~[]byte](dst []byte, args ...T) []byte {
	dst = appendHead(dst, '*', len(args))
	for _, a := range args {
		dst = AppendBulk(dst, a)
	}
	return dst
}

func appendHead(dst []byte, kind byte, n int) []byte {
	dst = append(dst, kind)
	dst = strconv.AppendInt(dst, int64(n), 10)
	return append(dst, '\r', '\n')
}
