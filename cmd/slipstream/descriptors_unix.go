//go:build unix

package main

import (
	"math"
	"syscall"
)

// descriptorLimit returns how many file descriptors the process may have open. Go's
// runtime has raised the soft limit to the hard one, less one, before main.
func descriptorLimit() int {
	var limit syscall.Rlimit
	if syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit) != nil {
		return 0
	}
	return int(min(limit.Cur, math.MaxInt32)) // there may be none
}
