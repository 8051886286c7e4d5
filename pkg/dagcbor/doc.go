// Package dagcbor turns the DAG-CBOR of atproto into JSON, bytes to bytes.
package dagcbor
