//go:build !cgo

package main

import "testing"

func checkLibzstd(t *testing.T, _ *wireSample) { t.Skip("libzstd needs cgo") }
