// Package assets keeps a copy of the files that Matomo's visitors load: the tracker,
// containers, their like, and serves it, also while Matomo is gone.
//
// # Contract
//
// A file is served as the origin last confirmed it. Bytes that the origin answers are
// published only when they pass the checks of their kind, and bytes that differ from
// a published copy only when the origin has answered them twice, a moment apart:
// Matomo writes its files in place, so one look can see half a file. What fails a
// check is never stored; the copy that was there stays. A file that the origin says
// is gone, twice, is forgotten. Any other failure of the origin leaves the copy as it
// is, and its answers then say how old it is.
//
// Nothing of a client's request reaches the origin but the path, and that only when
// it is one of a closed list of shapes; see [Cache.Claims]. The query is ignored.
//
// Files are kept in memory and on disk. A disk that fails costs the copies after a
// restart and nothing else.
//
// # Concurrency and lifetime
//
// [New] builds, [Cache.Load] reads the disk, [Cache.Run] fetches and encodes until its
// context is done. All other methods may be called from any goroutine at any time;
// before Run they serve what was loaded.
package assets
