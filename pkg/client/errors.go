package client

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"
)

// ErrCursorTooOld is what a v2 server says of a cursor that its buffer no longer holds. Events
// may be missing from there on; Config.FromOldest goes on all the same.
var ErrCursorTooOld = errors.New("the server's buffer no longer holds the cursor")

// ErrNoDictionary says that the frames of a server cannot be read, because it does not say which
// dictionary they are made with, and Bluesky's (LegacyDictionary), which that means, is not at hand.
var ErrNoDictionary = fmt.Errorf("the server names no zstd dictionary, which means dictionary %d, and that is not at hand", LegacyDictionary)

// A RefusedError is a server's no to a request.
type RefusedError struct {
	Status  int    // of HTTP
	Name    string // such as CursorTooOld; v2 only
	Message string // the server's sentence, which may hold anything

	retryAfter time.Duration
}

// Error implements error.
func (e *RefusedError) Error() string {
	s := fmt.Sprintf("the server refuses: %d %s", e.Status, http.StatusText(e.Status))
	if e.Message != "" {
		s += ": " + e.Message
	}
	return s
}

// Is makes errors.Is(err, ErrCursorTooOld) true for that refusal.
func (e *RefusedError) Is(target error) bool {
	return target == ErrCursorTooOld && e.Name == "CursorTooOld"
}

// final reports whether asking again is of no use.
func (e *RefusedError) final() bool {
	switch e.Status {
	case http.StatusRequestTimeout, http.StatusTooEarly, http.StatusTooManyRequests:
		return false
	case http.StatusNotImplemented, http.StatusHTTPVersionNotSupported:
		return true
	}
	return e.Status < 500
}

// finalError marks an error after which there is no use in connecting again.
type finalError struct{ error }

// Unwrap returns what went wrong.
func (e finalError) Unwrap() error { return e.error }

func final(format string, args ...any) error { return finalError{fmt.Errorf(format, args...)} }

func isFinal(err error) bool {
	if refused := (*RefusedError)(nil); errors.As(err, &refused) {
		return refused.final()
	}
	return errors.As(err, &finalError{})
}

// sentence is text of a server's, short.
func sentence(b []byte) string {
	const enough = 300
	s := strings.TrimSpace(strings.ToValidUTF8(string(b), "\uFFFD"))
	if len(s) > enough {
		s = strings.ToValidUTF8(s[:enough], "") + "…"
	}
	return s
}
