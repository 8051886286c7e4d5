// Package simrelay is a simulated relay: it serves com.atproto.sync.subscribeRepos over a real
// websocket, with real repositories behind it, for tests, demonstrations and benchmarks.
package simrelay
