package client

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/klauspost/compress/zstd"
)

// LegacyDictionary is the id of the dictionary that Jetstream v1's client libraries have built
// in. Servers that name none, as Bluesky's, make their frames with it. It is not part of this
// package: hand it over in Config.Dictionaries.
const LegacyDictionary = 1612007021

const legacySum = "b8d77b46933aceecbdd5275a01241efc985c970c78162b8150cf67a26522f70c" // SHA-256

const (
	dictionaryHeader = "Zstd-Dictionary-Id"
	dictionaryMagic  = 0xEC30A437 // RFC 8878 section 5
	// maxDictionary is ten times what a dictionary for short JSON has any use for.
	maxDictionary = 1 << 20
)

// DictionaryID returns the id that a zstd dictionary has in its header.
func DictionaryID(dictionary []byte) (uint32, error) {
	if len(dictionary) < 8 || binary.LittleEndian.Uint32(dictionary) != dictionaryMagic {
		return 0, errors.New("not a zstd dictionary (RFC 8878 section 5)")
	}
	return binary.LittleEndian.Uint32(dictionary[4:]), nil
}

// dictionaries are those of one server, by id, as decoders that are ready. Owned by Events.
type dictionaries struct {
	given    map[uint32][]byte // Config.Dictionaries
	decoders map[uint32]*zstd.Decoder
	server   *endpoint
	cacheDir string // "": none
	http     *http.Client
	agent    string
	max      int // of a message
}

func newDictionaries(cfg *Config, server *endpoint) (*dictionaries, error) {
	// Of its own: the default one may be anything that a program has put there.
	transport := &http.Transport{Proxy: http.ProxyFromEnvironment, TLSClientConfig: cfg.TLS.Clone(), ForceAttemptHTTP2: true}
	d := &dictionaries{
		given: map[uint32][]byte{}, decoders: map[uint32]*zstd.Decoder{}, server: server, cacheDir: cfg.CacheDir,
		http: &http.Client{Transport: transport, Timeout: handshakeTimeout}, agent: cfg.UserAgent, max: cfg.MaxMessage,
	}
	for _, b := range cfg.Dictionaries {
		id, err := checkDictionary(b)
		if err != nil {
			return nil, err
		}
		d.given[id] = b
	}
	return d, nil
}

// checkDictionary returns a dictionary's id.
func checkDictionary(b []byte) (uint32, error) {
	id, err := DictionaryID(b)
	if err != nil {
		return 0, err
	}
	if sum := sha256.Sum256(b); id == LegacyDictionary && hex.EncodeToString(sum[:]) != legacySum {
		return 0, fmt.Errorf("it has the id of Bluesky's dictionary, %d, and other contents", id)
	}
	return id, nil
}

func (d *dictionaries) close() {
	for _, decoder := range d.decoders {
		decoder.Close()
	}
	d.http.CloseIdleConnections()
}

// decoder returns what reads frames made with the dictionary id, which is fetched if it is not
// at hand.
func (d *dictionaries) decoder(ctx context.Context, id uint32) (*zstd.Decoder, error) {
	if decoder := d.decoders[id]; decoder != nil {
		return decoder, nil
	}
	b := d.given[id]
	if b != nil && id == LegacyDictionary {
		d.keep(b) // nobody can be asked for it the next time
	}
	if b == nil {
		b = d.cached(id)
	}
	if b == nil {
		from := d.server.sibling("dictionary/" + strconv.FormatUint(uint64(id), 10))
		if d.server.wire == V2 {
			from = d.server.sibling(dictionaryV2)
			from.RawQuery = "id=" + strconv.FormatUint(uint64(id), 10)
		}
		var err error
		if b, _, err = d.fetch(ctx, from); err != nil {
			return nil, err
		}
		d.keep(b)
	}
	return d.use(b, id)
}

// use makes the decoder of a dictionary that must have the id.
func (d *dictionaries) use(b []byte, want uint32) (*zstd.Decoder, error) {
	id, err := checkDictionary(b)
	if err != nil {
		return nil, final("dictionary %d: %w", want, err)
	}
	if id != want {
		return nil, final("the server's dictionary %d has the id %d", want, id)
	}
	decoder, err := zstd.NewReader(nil, zstd.WithDecoderDicts(b), zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(uint64(d.max)))
	if err != nil {
		return nil, final("dictionary %d is damaged: %w", id, err)
	}
	d.decoders[id] = decoder
	return decoder, nil
}

// current returns the id of the dictionary that a v2 server offers, which then is at hand.
func (d *dictionaries) current(ctx context.Context) (uint32, error) {
	b, notModified, err := d.fetch(ctx, d.server.sibling(dictionaryV2), d.atHand()...)
	if err != nil {
		return 0, err
	}
	if notModified != 0 {
		return notModified, nil
	}
	id, err := checkDictionary(b)
	if err != nil {
		return 0, final("the server's dictionary: %w", err)
	}
	d.keep(b)
	if d.decoders[id] == nil {
		_, err = d.use(b, id)
	}
	return id, err
}

// fetch downloads a dictionary, unless it is one of those that are at hand, by their ids.
func (d *dictionaries) fetch(ctx context.Context, from *url.URL, atHand ...uint32) (b []byte, notModified uint32, err error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, from.String(), nil)
	if err != nil {
		return nil, 0, err
	}
	request.Header.Set("User-Agent", d.agent)
	if len(atHand) > 0 {
		var tags []string
		for _, id := range atHand {
			tags = append(tags, fmt.Sprintf("%q", strconv.FormatUint(uint64(id), 10)))
		}
		request.Header.Set("If-None-Match", strings.Join(tags, ", "))
	}
	response, err := d.http.Do(request)
	if err != nil {
		return nil, 0, fmt.Errorf("fetch dictionary: %w", err)
	}
	defer response.Body.Close()
	if response.StatusCode == http.StatusNotModified {
		id, err := strconv.ParseUint(strings.Trim(strings.TrimPrefix(response.Header.Get("ETag"), "W/"), `"`), 10, 32)
		if err != nil || !slices.Contains(atHand, uint32(id)) {
			return nil, 0, final("the server does not say which dictionary has not changed")
		}
		return nil, uint32(id), nil
	}
	b, err = io.ReadAll(io.LimitReader(response.Body, maxDictionary+1))
	if err != nil {
		return nil, 0, fmt.Errorf("fetch dictionary: %w", err)
	}
	if response.StatusCode != http.StatusOK {
		return nil, 0, fmt.Errorf("fetch dictionary: %w", refusal(response, b))
	}
	if len(b) > maxDictionary {
		return nil, 0, final("the server's dictionary is larger than %d bytes", maxDictionary)
	}
	return b, 0, nil
}

// The cache holds a file for each dictionary: host_id_sum.zdict. Two servers may have given one id to
// two dictionaries; the sum tells a file that was damaged from one that was not, which a frame
// would not. Legacy dictionaries are the same everywhere.
func (d *dictionaries) cachePrefix(id uint32) string {
	if id == LegacyDictionary {
		return filepath.Join(d.cacheDir, "any_")
	}
	return filepath.Join(d.cacheDir, url.PathEscape(d.server.base.Host)+"_")
}

// cached returns a dictionary from the cache; nil: it is not there.
func (d *dictionaries) cached(id uint32) []byte {
	if d.cacheDir == "" {
		return nil
	}
	prefix := fmt.Sprintf("%s%d_", filepath.Base(d.cachePrefix(id)), id)
	entries, _ := os.ReadDir(d.cacheDir)
	for _, e := range entries {
		sum, ok := strings.CutPrefix(e.Name(), prefix)
		if !ok {
			continue
		}
		b, err := readDictionary(filepath.Join(d.cacheDir, e.Name()))
		if err != nil {
			continue
		}
		if s := sha256.Sum256(b); hex.EncodeToString(s[:])+".zdict" == sum {
			return b
		}
	}
	return nil
}

func readDictionary(name string) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, maxDictionary+1))
}

// atHand returns which dictionaries of the server need not be fetched.
func (d *dictionaries) atHand() []uint32 {
	ids := slices.Collect(maps.Keys(d.decoders))
	if d.cacheDir == "" {
		return ids
	}
	prefix := filepath.Base(d.cachePrefix(0))
	entries, _ := os.ReadDir(d.cacheDir)
	for _, e := range entries {
		rest, ok := strings.CutPrefix(e.Name(), prefix)
		text, _, _ := strings.Cut(rest, "_")
		if id, err := strconv.ParseUint(text, 10, 32); ok && err == nil && len(ids) < 16 && d.cached(uint32(id)) != nil {
			ids = append(ids, uint32(id))
		}
	}
	return ids
}

// keep puts a dictionary into the cache. That it cannot be kept is no fault: it is fetched again.
func (d *dictionaries) keep(b []byte) {
	id, err := checkDictionary(b)
	if err != nil || d.cacheDir == "" || os.MkdirAll(d.cacheDir, 0o755) != nil {
		return
	}
	_ = replaceFile(fmt.Sprintf("%s%d_%x.zdict", d.cachePrefix(id), id, sha256.Sum256(b)), b)
}
