package client

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// A CursorStore keeps the acknowledged cursor from one run of a program to the next.
type CursorStore interface {
	// LoadCursor returns what was saved last; 0: nothing yet.
	LoadCursor(ctx context.Context) (Cursor, error)
	// SaveCursor keeps a cursor. When it returns, the cursor must be safe.
	SaveCursor(ctx context.Context, c Cursor) error
}

// FileCursor returns a store that keeps the cursor in a file, as a line of text. The file is
// replaced as a whole: it holds the old cursor or the new one whatever happens.
func FileCursor(name string) CursorStore { return fileCursor(name) }

type fileCursor string

func (f fileCursor) LoadCursor(context.Context) (Cursor, error) {
	b, err := os.ReadFile(string(f))
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	n, err := strconv.ParseInt(strings.TrimSpace(string(b[:min(len(b), 40)])), 10, 64)
	if err != nil || n <= 0 {
		return 0, fmt.Errorf("%s holds no cursor; remove it to begin anew", string(f))
	}
	return Cursor(n), nil
}

func (f fileCursor) SaveCursor(_ context.Context, c Cursor) error {
	return replaceFile(string(f), []byte(strconv.FormatInt(int64(c), 10)+"\n"))
}

// replaceFile writes a file so that nobody ever sees a part of it, and a crash leaves the old or
// the new one.
func replaceFile(name string, content []byte) error {
	f, err := os.CreateTemp(filepath.Dir(name), "."+filepath.Base(name)+"-*")
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	err = errors.Join(err, f.Chmod(0o644), f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), name)
	}
	if err != nil {
		os.Remove(f.Name())
	}
	return err
}
