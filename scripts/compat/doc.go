// Package compat runs clients that other people wrote against the real binary.
package compat
