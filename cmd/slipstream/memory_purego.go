//go:build !cgo

package main

func limitArenas() {}
