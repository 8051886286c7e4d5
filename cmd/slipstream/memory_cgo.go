//go:build cgo

package main

/*
#include <stdlib.h>
#ifdef __GLIBC__
#include <malloc.h>

// glibc would give each thread an arena of its own, and each keeps what a compression context
// once took: 10 MB after a quarter of an hour. C allocates a handful of large things here, so
// that nothing waits for the one. It has to be said before there are threads.
__attribute__((constructor)) static void one_arena(void) { mallopt(M_ARENA_MAX, 1); }
#endif
*/
import "C"
