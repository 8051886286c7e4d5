package main

import (
	"crypto/sha256"
	"encoding/hex"
)

// The dictionary that Jetstream v1's client libraries have built in, which is Bluesky's of 2024.
const (
	legacyID  = 1612007021
	legacySum = "b8d77b46933aceecbdd5275a01241efc985c970c78162b8150cf67a26522f70c" // SHA-256
)

func isLegacy(dictionary []byte) bool {
	sum := sha256.Sum256(dictionary)
	return hex.EncodeToString(sum[:]) == legacySum
}
