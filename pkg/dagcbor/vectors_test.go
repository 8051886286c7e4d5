package dagcbor_test

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"path/filepath"
	"slices"
	"testing"

	"slipstream/pkg/dagcbor"
)

// deviations are the DASL vectors where we differ on purpose, by file and hex: encodings
// that are not canonical but mean one thing are taken, and what the atproto data model
// does not have is refused.
var deviations = map[string]struct {
	takenLoose bool
	reason     dagcbor.Reason
}{
	"cid d9002a582500015512205891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03": {takenLoose: true},
	"cid d82a58250001551e208e4c7c1b99dbfd50e7a95185fead5ee1448fa904a2fdd778eaf5f2dbfd629a99":   {reason: dagcbor.ReasonInvalidCID},
	"floats fb3ff8000000000000":           {reason: dagcbor.ReasonFloat},
	"floats fb0000000000000000":           {reason: dagcbor.ReasonFloat},
	"floats fb0000000000000001":           {reason: dagcbor.ReasonFloat},
	"integer_range 1bffffffffffffffff":    {reason: dagcbor.ReasonIntegerRange},
	"integer_range 3bffffffffffffffff":    {reason: dagcbor.ReasonIntegerRange},
	"map_keys a2616201616100":             {takenLoose: true},
	"short_form b801616100":               {takenLoose: true},
	"short_form b90001616100":             {takenLoose: true},
	"short_form ba00000001616100":         {takenLoose: true},
	"short_form bb0000000000000001616100": {takenLoose: true},
	"short_form 1801":                     {takenLoose: true},
	"short_form 190001":                   {takenLoose: true},
	"short_form 1a00000001":               {takenLoose: true},
	"short_form 1b0000000000000001":       {takenLoose: true},
	"short_form 3800":                     {takenLoose: true},
	"short_form 390000":                   {takenLoose: true},
	"short_form 3a00000000":               {takenLoose: true},
	"short_form 3b0000000000000000":       {takenLoose: true},
	"short_form 5800":                     {takenLoose: true},
	"short_form 590000":                   {takenLoose: true},
	"short_form 5a00000000":               {takenLoose: true},
	"short_form 5b0000000000000000":       {takenLoose: true},
	"short_form 7800":                     {takenLoose: true},
	"short_form 790000":                   {takenLoose: true},
	"short_form 7a00000000":               {takenLoose: true},
	"short_form 7b0000000000000000":       {takenLoose: true},
	"short_form 9800":                     {takenLoose: true},
	"short_form 990000":                   {takenLoose: true},
	"short_form 9a00000000":               {takenLoose: true},
	"short_form 9b0000000000000000":       {takenLoose: true},
}

func TestDASLVectors(t *testing.T) {
	files, _ := filepath.Glob(filepath.Join(shared(t, "vectors/dasl"), "*.json"))
	if len(files) == 0 {
		t.Fatal("no vectors")
	}
	used := map[string]bool{}
	for _, file := range files {
		var vectors []struct {
			Type, Data, Name string
			Tags             []string
		}
		base := filepath.Base(file)
		readSharedJSON(t, "vectors/dasl/"+base, &vectors)
		for _, v := range vectors {
			ours := func(tag string) bool { return tag == "basic" || tag == "dag-cbor" || tag == "dasl-cid" }
			if !slices.ContainsFunc(v.Tags, ours) {
				continue // of another profile of CBOR
			}
			key := base[:len(base)-len(".json")] + " " + v.Data
			dev, deviates := deviations[key]
			data, err := hex.DecodeString(v.Data)
			if err != nil {
				t.Fatal(err)
			}
			out, canonical, err := dagcbor.AppendJSON(nil, data)
			r := reason(t, err)
			switch {
			case deviates && dev.takenLoose:
				used[key] = true
				if r != taken || canonical {
					t.Errorf("%s: %s: got %v, canonical %v; want it taken and noticed", key, v.Name, r, canonical)
				}
			case deviates:
				used[key] = true
				if r != dev.reason {
					t.Errorf("%s: %s: got %v, want %v", key, v.Name, r, dev.reason)
				}
			case v.Type == "roundtrip":
				if r != taken || !canonical {
					t.Errorf("%s: %s: got %v, canonical %v; want it taken", key, v.Name, r, canonical)
				}
			case r == taken: // invalid_in, and invalid_out all the more
				t.Errorf("%s: %s: want it refused", key, v.Name)
			}
			if r != taken {
				continue
			}
			want, err := oracleJSON(wrap(data))
			if err != nil {
				t.Errorf("%s: %s: atdata refuses it: %v", key, v.Name, err)
				continue
			}
			sameJSON(t, slices.Concat([]byte(`{"x":`), out, []byte(`}`)), want)
		}
	}
	for key := range deviations {
		if !used[key] {
			t.Errorf("deviation %s names no vector", key)
		}
	}
}

func TestDataModelFixtures(t *testing.T) {
	var fixtures []struct {
		JSON json.RawMessage
		CBOR string `json:"cbor_base64"`
		CID  string
	}
	readSharedJSON(t, "vectors/data-model/data-model-fixtures.json", &fixtures)
	for i, f := range fixtures {
		data, err := base64.RawStdEncoding.DecodeString(f.CBOR)
		if err != nil {
			t.Fatal(err)
		}
		out, canonical, err := dagcbor.AppendRecordJSON(nil, data)
		if err != nil || !canonical {
			t.Errorf("fixture %d: canonical %v, %v", i, canonical, err)
		}
		sameJSON(t, out, f.JSON)
		if got := dagcbor.SumCID(data).String(); got != f.CID {
			t.Errorf("fixture %d: got %s, want %s", i, got, f.CID)
		}
	}
}

func TestDataModelValidity(t *testing.T) {
	for file, valid := range map[string]bool{"valid": true, "invalid": false} {
		var vectors []struct {
			Note string
			JSON any
		}
		readSharedJSON(t, "vectors/data-model/data-model-"+file+".json", &vectors)
		for _, v := range vectors {
			// Links and bytes stay the maps they are written as: the shapes are the point.
			_, _, err := dagcbor.AppendRecordJSON(nil, encode(v.JSON))
			if (err == nil) != valid {
				t.Errorf("%s: %v", v.Note, err)
			}
		}
	}
}

func TestCID(t *testing.T) {
	data := []byte("some block")
	c := dagcbor.SumCID(data)
	if !c.Matches(data) || c.Matches(data[1:]) || dagcbor.CID(nil).Matches(data) || !c.IsDagCBOR() {
		t.Error("Matches or IsDagCBOR is wrong")
	}
	got, n, err := dagcbor.ParseCID(append(bytes.Clone(c), 1, 2))
	if err != nil || n != 36 || !bytes.Equal(got, c) {
		t.Errorf("got %v, %d, %v", got, n, err)
	}
	for i := range 4 {
		bad := bytes.Clone(c)
		bad[i]++
		if _, _, err := dagcbor.ParseCID(bad); reason(t, err) != dagcbor.ReasonInvalidCID {
			t.Errorf("byte %d: got %v", i, err)
		}
	}
	if _, _, err := dagcbor.ParseCID(c[:35]); reason(t, err) != dagcbor.ReasonTruncated {
		t.Errorf("got %v", err)
	}
	// The digest of nothing is well known.
	want := "bafkreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku"
	empty := dagcbor.SumCID(nil)
	empty[1] = 0x55
	if got := empty.String(); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}
