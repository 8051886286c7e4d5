package main

import (
	"io"
	"os"

	"golang.org/x/term"
)

// isTerminal reports whether w is one that shows colours and moves its cursor.
func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd())) && os.Getenv("TERM") != "dumb"
}

// takesColours reports whether what is written to w is to have colours, unless the user says
// otherwise for this one program.
func takesColours(w io.Writer) bool { return isTerminal(w) && os.Getenv("NO_COLOR") == "" }
