package main

import (
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"golang.org/x/crypto/acme"
	"golang.org/x/crypto/acme/autocert"
)

// certificatesName is where in the data dir the certificates of --tls-domain are kept.
const certificatesName = "certificates"

// newTLS returns how the public address speaks TLS; nil: not at all.
func newTLS(cfg Config, log *slog.Logger) (*tls.Config, error) {
	switch {
	case len(cfg.TLSDomains) > 0:
		manager := autocert.Manager{
			Prompt:     autocert.AcceptTOS,
			HostPolicy: autocert.HostWhitelist(cfg.TLSDomains...),
			Cache:      autocert.DirCache(filepath.Join(cfg.DataDir, certificatesName)),
			Client:     &acme.Client{DirectoryURL: cfg.ACMEDirectory, UserAgent: "slipstream/" + buildVersion()},
		}
		c := manager.TLSConfig()
		c.GetCertificate = complaining(manager.GetCertificate, cfg.TLSDomains, log)
		return c, nil
	case cfg.TLSCert != "":
		pair := &certificateFiles{cert: cfg.TLSCert, key: cfg.TLSKey, every: certificateInterval, log: log}
		if _, err := pair.certificate(nil); err != nil {
			return nil, fmt.Errorf("--tls-cert %s, --tls-key %s: %w", cfg.TLSCert, cfg.TLSKey, err)
		}
		return &tls.Config{GetCertificate: pair.certificate, NextProtos: []string{"h2", "http/1.1"}}, nil
	}
	return nil, nil
}

// certificateOf is a tls.Config's GetCertificate.
type certificateOf func(*tls.ClientHelloInfo) (*tls.Certificate, error)

// complaining says when there is no certificate for a domain that there should be one for.
// That somebody asks for another name, as scanners do, is not worth a word.
func complaining(get certificateOf, domains []string, log *slog.Logger) certificateOf {
	var told throttle
	return func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
		c, err := get(hello)
		if err != nil && slices.Contains(domains, hello.ServerName) && told.ok() {
			log.Error("cannot get a certificate: the name must lead here, and port 443 of it to --listen-addr", "domain", hello.ServerName, "error", err)
		}
		return c, err
	}
}

// certificateFiles is a pair of files that somebody else renews.
type certificateFiles struct {
	cert, key string
	every     time.Duration // how often they are looked at, at most
	log       *slog.Logger
	told      throttle

	mu      sync.Mutex // guards everything below
	looked  time.Time
	changed [2]time.Time // when the files were, by their own word
	pair    *tls.Certificate
}

// certificateInterval is how often certificateFiles are looked at.
const certificateInterval = 10 * time.Second

// certificate is a [certificateOf]. While the files make no pair, as between the writing of
// one and of the other, the last one that they made goes on.
func (f *certificateFiles) certificate(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.pair != nil && time.Since(f.looked) < f.every {
		return f.pair, nil
	}
	f.looked = time.Now()
	var changed [2]time.Time
	for i, file := range []string{f.cert, f.key} {
		if info, err := os.Stat(file); err == nil {
			changed[i] = info.ModTime()
		}
	}
	if f.pair != nil && changed == f.changed {
		return f.pair, nil
	}
	pair, err := tls.LoadX509KeyPair(f.cert, f.key)
	if err == nil {
		f.pair, f.changed = &pair, changed
		return f.pair, nil
	}
	var path *os.PathError
	if errors.As(err, &path) {
		err = fmt.Errorf("%s: %w", path.Path, path.Err)
	}
	if f.pair == nil {
		return nil, err
	}
	if f.told.ok() {
		f.log.Error("the renewed certificate cannot be used, the old one goes on", "cert", f.cert, "key", f.key, "error", err)
	}
	return f.pair, nil
}
