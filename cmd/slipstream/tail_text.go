package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/mattn/go-runewidth"

	"slipstream/pkg/client"
)

// What people put into records must not reach a terminal as it is: escape sequences could write into its
// title, its clipboard or, by way of an answer, its input; marks for the direction of text could make a
// line read as another; a heap of accents could cover the lines around it.

const joiner = '\u200d' // holds emoji together

// maxMarks is how many accents a character may carry: more than any script needs.
const maxMarks = 4

// harmless makes one line of a text that a terminal shows as such.
func harmless(s string) string {
	var b strings.Builder
	marks, space := 0, false
	for _, r := range s {
		switch {
		case unicode.IsSpace(r): // line breaks included
			space = true
			continue
		case unicode.Is(unicode.Mn, r) || unicode.Is(unicode.Me, r):
			if marks++; marks > maxMarks {
				continue
			}
		case r == joiner:
		case unicode.Is(unicode.Cf, r): // directions, invisible letters
			continue
		case !unicode.IsPrint(r):
			r, marks = utf8.RuneError, 0
		default:
			marks = 0
		}
		if space && b.Len() > 0 {
			b.WriteByte(' ')
		}
		space = false
		b.WriteRune(r)
	}
	return b.String()
}

// harmlessJSON returns JSON of the same value in which what harmless changes is escaped.
func harmlessJSON(raw []byte) []byte {
	safe := true
	for _, r := range string(raw) {
		if !unicode.IsPrint(r) {
			safe = false
			break
		}
	}
	if safe {
		return raw
	}
	var b bytes.Buffer
	for _, r := range string(raw) {
		switch {
		case unicode.IsPrint(r) || r == joiner:
			b.WriteRune(r)
		case r < 0x10000:
			fmt.Fprintf(&b, `\u%04x`, r)
		default:
			r -= 0x10000
			fmt.Fprintf(&b, `\u%04x\u%04x`, 0xd800+r>>10, 0xdc00+r&0x3ff)
		}
	}
	return b.Bytes()
}

// harmlessValue is harmless for all texts in a JSON value, which it changes; they keep their line breaks.
func harmlessValue(v any) any {
	switch v := v.(type) {
	case string:
		lines := strings.Split(v, "\n")
		for i := range lines {
			lines[i] = harmless(lines[i])
		}
		return strings.Join(lines, "\n")
	case []any:
		for i := range v {
			v[i] = harmlessValue(v[i])
		}
	case map[string]any:
		for key, value := range v {
			v[key] = harmlessValue(value)
		}
	}
	return v
}

// The colours, which every terminal has and lets its user choose.
const (
	dim, red, green, yellow, blue, magenta, cyan = "\x1b[2m", "\x1b[31m", "\x1b[32m", "\x1b[33m", "\x1b[34m", "\x1b[35m", "\x1b[36m"
	plain                                        = "\x1b[0m"
)

// A line is one event for a person's eyes, in parts of a colour each.
type line struct {
	b     []byte
	color bool
	left  int // columns; negative: no limit
}

// add appends a part, cut to what is left of the line.
func (l *line) add(color, text string) {
	if l.left >= 0 {
		text = runewidth.Truncate(text, l.left, "…")
		l.left -= runewidth.StringWidth(text)
	}
	if text == "" {
		return
	}
	if color = map[bool]string{true: color}[l.color]; color != "" {
		l.b = append(append(append(l.b, color...), text...), plain...)
	} else {
		l.b = append(l.b, text...)
	}
}

var signs = map[string]struct{ sign, color string }{
	client.Create: {"+", green}, client.Update: {"~", yellow}, client.Delete: {"-", red},
}

// appendLine appends an event as a line: time, what happened, to what, whose, and what it says.
func appendLine(dst []byte, e *client.Event, color bool, width int) []byte {
	l := line{b: dst, color: color, left: width}
	if width <= 0 {
		l.left = -1
	}
	at := e.Time.Local()
	if time.Since(at) > 20*time.Hour {
		l.add(dim, at.Format("01-02 15:04:05 "))
	} else {
		l.add(dim, at.Format("15:04:05 "))
	}
	sign, signColor, what, text := "?", magenta, string(e.Kind), ""
	switch e.Kind {
	case client.KindCommit:
		s := signs[e.Commit.Operation]
		sign, signColor, what = s.sign, s.color, e.Commit.Collection
		if sign == "" {
			sign, signColor = "?", magenta
		}
		text = summary(e.Commit)
	case client.KindIdentity:
		sign, text = "@", e.Identity.Handle
	case client.KindAccount:
		sign, text = "!", "active"
		if !e.Account.Active {
			text = "not active: " + e.Account.Status
		}
	case client.KindSync:
		sign, text = "=", e.Sync.Rev
	}
	l.add(signColor, sign+" ")
	l.add(cyan, pad(harmless(strings.TrimPrefix(what, "app.bsky.")), 15)+" ")
	did := harmless(e.DID)
	if width > 0 && width < 110 {
		did = runewidth.Truncate(did, 17, "…")
	}
	l.add(dim, pad(did, 17)+" ")
	l.add("", harmless(text))
	return append(l.b, '\n')
}

func pad(s string, width int) string { return runewidth.FillRight(s, width) }

// maxSummary bounds what is looked at of a text, in bytes: no line is so long.
const maxSummary = 4 << 10

// summary says what a record is, in a few words.
func summary(c *client.Commit) string {
	if c.Record == nil {
		return c.RKey
	}
	var r struct {
		Text        string
		Reply       *struct{}
		Subject     json.RawMessage
		DisplayName string
		Name        string
		Title       string
	}
	// What is not of that type is not ours to understand.
	_ = json.Unmarshal(c.Record, &r)
	var uri string
	var strong struct{ URI string }
	if json.Unmarshal(r.Subject, &uri) != nil && json.Unmarshal(r.Subject, &strong) == nil {
		uri = strong.URI
	}
	text := string(c.Record)
	switch {
	case r.Text != "" && r.Reply != nil:
		text = "↩ " + r.Text
	case r.Text != "":
		text = r.Text
	case uri != "":
		text = "→ " + uri
	case r.DisplayName != "":
		text = r.DisplayName
	case r.Title != "":
		text = r.Title
	case r.Name != "":
		text = r.Name
	}
	return text[:min(len(text), maxSummary)]
}
