// Package phpform reads queries and forms exactly as PHP 8 and Matomo read
// them.
//
// # Contract
//
// The edge judges a hit by its parameters before Matomo does, and sends it on as
// a string that Matomo parses again. Both are safe only when the edge sees the
// variables that PHP will see, under the names that PHP gives them:
//
//   - The only separator is "&", the first "=" ends the name, a percent sign
//     without two hexadecimal digits is kept, "+" is a space, and bytes are
//     opaque. A raw NUL ends a query, but not a form body.
//   - A name is decoded and cut at a NUL. Leading spaces go, "." and " " before
//     the first "[" become "_", and a name that is then empty is ignored. When
//     nothing closes the first "[", it and every ".", " " and "[" behind it
//     become "_" and the variable is a scalar. Text behind a closing "]" that is
//     not another "[" is ignored.
//   - A name that becomes "__Host-…" or "__Secure-…" only by this is ignored.
//   - A later pair of the same name replaces an earlier one, and a scalar
//     replaces an array and the reverse. More than [MaxDepth] subscripts remove
//     the variable.
//   - A query has at most [MaxVars] pairs; empty pairs do not count, and pairs
//     that are ignored for their name do. A form body has one more, and there
//     empty pairs count too.
//
// The limits are PHP's defaults. An installation that lowers them in its php.ini
// reads less than this package does, one that raises them reads more.
// Multipart bodies are not read here.
//
// # Values
//
// [Form.Raw] and [Form.String] give the decoded bytes. Matomo escapes strings
// for HTML when it reads them, which drops NUL bytes and decodes entities: a
// value of NUL bytes only, or "0" with NUL bytes or written as an entity, is
// empty to Matomo where it reads the escaped string, and is not empty to [Empty].
// The reverse never happens. [Form.Int] follows Matomo in this too, since there
// it decides the number.
//
// # Concurrency and lifetime
//
// Functions keep no state. A [Form] is never changed after [Parse], so many
// goroutines may read it, and it holds its own copy of the input; strings from
// it keep that copy alive. A [Pair] points into the input.
package phpform
