//go:build !race

package eventlog

const racing = false
