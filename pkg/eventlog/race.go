//go:build race

package eventlog

const racing = true
