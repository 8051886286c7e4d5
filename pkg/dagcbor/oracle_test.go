package dagcbor_test

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"testing"

	"github.com/bluesky-social/indigo/atproto/atdata"

	"slipstream/pkg/dagcbor"
)

// shared returns the path of a file of test data that is not part of the project.
func shared(tb testing.TB, name string) string {
	tb.Helper()
	path := filepath.Join("../../../shared/data", name)
	if _, err := os.Stat(path); err != nil {
		tb.Skipf("no shared test data: %v", err)
	}
	return path
}

func readShared(tb testing.TB, name string) []byte {
	tb.Helper()
	b, err := os.ReadFile(shared(tb, name))
	if err != nil {
		tb.Fatal(err)
	}
	return b
}

func readSharedJSON(tb testing.TB, name string, into any) {
	tb.Helper()
	d := json.NewDecoder(bytes.NewReader(readShared(tb, name)))
	d.UseNumber()
	if err := d.Decode(into); err != nil {
		tb.Fatal(err)
	}
}

// oracleJSON is the slow way: a map by atdata, JSON by the standard library.
func oracleJSON(record []byte) ([]byte, error) {
	m, err := atdata.UnmarshalCBOR(record)
	if err != nil {
		return nil, err
	}
	return json.Marshal(mendBytes(m))
}

// mendBytes makes empty byte strings not nil. atdata reads them as nil, and its encoder
// then refuses what its decoder took.
func mendBytes(v any) any {
	switch v := v.(type) {
	case atdata.Bytes:
		if v == nil {
			return atdata.Bytes{}
		}
	case []any:
		for i := range v {
			v[i] = mendBytes(v[i])
		}
	case map[string]any:
		for k := range v {
			v[k] = mendBytes(v[k])
		}
	}
	return v
}

// wrap makes a record of an item, so that the oracle can be asked about it.
func wrap(item []byte) []byte { return append([]byte("\xa1\x61x"), item...) }

// decodeJSON decodes one JSON value exactly, and refuses repeated keys.
func decodeJSON(b []byte) (any, error) {
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	v, err := decodeValue(d)
	if err != nil {
		return nil, err
	}
	if _, err := d.Token(); err != io.EOF {
		return nil, fmt.Errorf("something follows the value: %v", err)
	}
	return v, nil
}

func decodeValue(d *json.Decoder) (any, error) {
	tok, err := d.Token()
	if err != nil {
		return nil, err
	}
	switch tok {
	case json.Delim('['):
		list := []any{}
		for d.More() {
			v, err := decodeValue(d)
			if err != nil {
				return nil, err
			}
			list = append(list, v)
		}
		_, err := d.Token()
		return list, err
	case json.Delim('{'):
		m := map[string]any{}
		for d.More() {
			key, err := d.Token()
			if err != nil {
				return nil, err
			}
			if _, ok := m[key.(string)]; ok {
				return nil, fmt.Errorf("key %q twice", key)
			}
			if m[key.(string)], err = decodeValue(d); err != nil {
				return nil, err
			}
		}
		_, err := d.Token()
		return m, err
	}
	return tok, nil
}

func sameJSON(tb testing.TB, got, want []byte) {
	tb.Helper()
	g, err := decodeJSON(got)
	if err != nil {
		tb.Fatalf("not JSON: %v\n%s", err, got)
	}
	w, err := decodeJSON(want)
	if err != nil {
		tb.Fatalf("oracle: %v\n%s", err, want)
	}
	if !reflect.DeepEqual(g, w) {
		tb.Fatalf("got  %s\nwant %s", got, want)
	}
}

// encode is the obvious DAG-CBOR encoder. Maps are written as they are, also those that
// look like links; a dagcbor.CID is a link, raw is put in as it stands.
func encode(v any) []byte { return appendItem(nil, v) }

type raw []byte

func appendItem(b []byte, v any) []byte {
	switch v := v.(type) {
	case nil:
		return append(b, 0xf6)
	case bool:
		if v {
			return append(b, 0xf5)
		}
		return append(b, 0xf4)
	case int:
		if v < 0 {
			return appendHead(b, 1, uint64(^v))
		}
		return appendHead(b, 0, uint64(v))
	case json.Number:
		if i, err := v.Int64(); err == nil {
			return appendItem(b, int(i))
		}
		f, err := v.Float64()
		if err == nil && f == math.Trunc(f) {
			return appendItem(b, int(f))
		}
		return appendItem(b, f)
	case float64:
		return binary.BigEndian.AppendUint64(append(b, 0xfb), math.Float64bits(v))
	case string:
		return append(appendHead(b, 3, uint64(len(v))), v...)
	case []byte:
		return append(appendHead(b, 2, uint64(len(v))), v...)
	case dagcbor.CID:
		return append(append(b, 0xd8, 42, 0x58, byte(len(v)+1), 0), v...)
	case raw:
		return append(b, v...)
	case []any:
		b = appendHead(b, 4, uint64(len(v)))
		for _, e := range v {
			b = appendItem(b, e)
		}
		return b
	case map[string]any:
		keys := make([]string, 0, len(v))
		for k := range v {
			keys = append(keys, k)
		}
		slices.SortFunc(keys, func(x, y string) int {
			return bytes.Compare(encode(x), encode(y))
		})
		b = appendHead(b, 5, uint64(len(v)))
		for _, k := range keys {
			b = appendItem(appendItem(b, k), v[k])
		}
		return b
	}
	panic(fmt.Sprintf("cannot encode %T", v))
}

func appendHead(b []byte, major byte, n uint64) []byte {
	major <<= 5
	switch {
	case n < 24:
		return append(b, major|byte(n))
	case n < 1<<8:
		return append(b, major|24, byte(n))
	case n < 1<<16:
		return binary.BigEndian.AppendUint16(append(b, major|25), uint16(n))
	case n < 1<<32:
		return binary.BigEndian.AppendUint32(append(b, major|26), uint32(n))
	}
	return binary.BigEndian.AppendUint64(append(b, major|27), n)
}
