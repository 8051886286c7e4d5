//go:build cgo

package main

/*
#include <stdlib.h>
#ifdef __GLIBC__
#include <malloc.h>
#endif

static void one_arena(void) {
#ifdef __GLIBC__
	mallopt(M_ARENA_MAX, 1);
#endif
}
*/
import "C"

// limitArenas makes glibc allocate from one arena. It would give each thread one of its own,
// and each keeps what a compression context once took: 10 MB after a quarter of an hour.
// C allocates a handful of large things here, so nothing waits for the one.
func limitArenas() { C.one_arena() }
