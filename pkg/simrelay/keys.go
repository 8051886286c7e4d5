package simrelay

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"encoding/asn1"
	"encoding/binary"
	"errors"
	"fmt"
	"math/big"

	"github.com/bluesky-social/indigo/atproto/atcrypto"
	"gitlab.com/yawning/secp256k1-voi/secec"
)

// indigo's own keys mix fresh randomness into every signature. These take their nonce from the
// key and the message (RFC 6979), so that one seed gives one stream, byte for byte.

// A p256Key signs deterministically with NIST P-256.
type p256Key struct{ key *ecdsa.PrivateKey }

// A k256Key signs deterministically with secp256k1.
type k256Key struct{ key *secec.PrivateKey }

var (
	_ atcrypto.PrivateKey = (*p256Key)(nil)
	_ atcrypto.PrivateKey = (*k256Key)(nil)
)

// newKey derives the signing key of an account. One account in four signs with secp256k1, whose
// pure-Go signatures cost several times those of P-256.
func newKey(seed, account uint64) (atcrypto.PrivateKey, error) {
	secret := keySecret(seed, account)
	if account%4 == 3 {
		key, err := secec.NewPrivateKey(secret)
		if err != nil {
			return nil, fmt.Errorf("derive secp256k1 key: %w", err)
		}
		return &k256Key{key}, nil
	}
	key, err := ecdsa.ParseRawPrivateKey(elliptic.P256(), secret)
	if err != nil {
		return nil, fmt.Errorf("derive P-256 key: %w", err)
	}
	return &p256Key{key}, nil
}

// PublicKey returns the key that an account of the stream signs with, or nil for a DID that is not
// among its first million. It searches: it is made for tests.
func (r *Relay) PublicKey(did string) atcrypto.PublicKey {
	for n := range uint64(1e6) {
		if got, _ := didOf(r.cfg.Seed, n); got != did {
			continue
		}
		key, err := newKey(r.cfg.Seed, n)
		if err != nil {
			return nil
		}
		public, err := key.PublicKey()
		if err != nil {
			return nil
		}
		return public
	}
	return nil
}

// keySecret hashes its way to a scalar. Clearing the top bit keeps it below both group orders.
func keySecret(seed, account uint64) []byte {
	var in [16]byte
	binary.BigEndian.PutUint64(in[:8], seed)
	binary.BigEndian.PutUint64(in[8:], account)
	secret := sha256.Sum256(in[:])
	secret[0] &= 0x7f
	secret[31] |= 1
	return secret[:]
}

func (k *p256Key) Equal(other atcrypto.PrivateKey) bool {
	o, ok := other.(*p256Key)
	return ok && k.key.Equal(o.key)
}

func (k *p256Key) PublicKey() (atcrypto.PublicKey, error) {
	raw, err := k.key.PublicKey.Bytes()
	if err != nil {
		return nil, fmt.Errorf("encode P-256 public key: %w", err)
	}
	// Uncompressed is 0x04, x, y; compressed is 0x02 or 0x03 by the parity of y, then x.
	compressed := append([]byte{0x02 | raw[64]&1}, raw[1:33]...)
	return atcrypto.ParsePublicBytesP256(compressed)
}

var (
	p256Order     = elliptic.P256().Params().N
	p256HalfOrder = new(big.Int).Rsh(p256Order, 1)
)

// HashAndSign returns r and s, 32 bytes each, with s in the lower half of the group.
func (k *p256Key) HashAndSign(content []byte) ([]byte, error) {
	digest := sha256.Sum256(content)
	der, err := k.key.Sign(nil, digest[:], crypto.SHA256)
	if err != nil {
		return nil, fmt.Errorf("sign with P-256: %w", err)
	}
	var sig struct{ R, S *big.Int }
	if rest, err := asn1.Unmarshal(der, &sig); err != nil || len(rest) > 0 {
		return nil, errors.New("sign with P-256: malformed signature")
	}
	if sig.S.Cmp(p256HalfOrder) > 0 {
		sig.S.Sub(p256Order, sig.S)
	}
	out := make([]byte, 64)
	sig.R.FillBytes(out[:32])
	sig.S.FillBytes(out[32:])
	return out, nil
}

func (k *k256Key) Equal(other atcrypto.PrivateKey) bool {
	o, ok := other.(*k256Key)
	return ok && k.key.Equal(o.key)
}

func (k *k256Key) PublicKey() (atcrypto.PublicKey, error) {
	return atcrypto.ParsePublicBytesK256(k.key.PublicKey().CompressedBytes())
}

var k256Options = &secec.ECDSAOptions{Hash: crypto.SHA256, Encoding: secec.EncodingCompact}

// HashAndSign returns r and s, 32 bytes each; the library keeps s in the lower half by itself.
func (k *k256Key) HashAndSign(content []byte) ([]byte, error) {
	digest := sha256.Sum256(content)
	sig, err := k.key.Sign(secec.RFC6979SHA256(), digest[:], k256Options)
	if err != nil {
		return nil, fmt.Errorf("sign with secp256k1: %w", err)
	}
	return sig, nil
}
