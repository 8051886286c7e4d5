package main

import (
	"context"
	"errors"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/bluesky-social/indigo/atproto/identity"
	"github.com/bluesky-social/indigo/atproto/syntax"
)

// resolveTimeout is for all handles together.
const resolveTimeout = 30 * time.Second

// accounts returns the DIDs of accounts that are named by DID or handle. A handle is believed when
// the document of the DID that it leads to names it.
func accounts(ctx context.Context, names []string, plcURL, dnsServer string) ([]string, error) {
	ctx, cancel := context.WithTimeout(ctx, resolveTimeout)
	defer cancel()
	directory := identity.BaseDirectory{
		PLCURL:     strings.TrimRight(plcURL, "/"),
		HTTPClient: http.Client{Timeout: 10 * time.Second},
		// Those of Bluesky's are served by HTTPS only: a question less.
		SkipDNSDomainSuffixes: []string{".bsky.social"},
		UserAgent:             "slipstream-tail/" + buildVersion(),
	}
	if dnsServer != "" {
		directory.Resolver = net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return (&net.Dialer{Timeout: 3 * time.Second}).DialContext(ctx, network, dnsServer)
		}}
	}
	var dids []string
	for _, name := range names {
		name = strings.TrimPrefix(strings.TrimSpace(name), "@")
		if did, err := syntax.ParseDID(name); err == nil {
			dids = append(dids, did.String())
			continue
		}
		handle, err := syntax.ParseHandle(name)
		if err != nil {
			return nil, usage("--did %q: use a DID like did:plc:ewvi7nxzyoun6zhxrhs64oiz, or a handle like alice.example.com", name)
		}
		if !validHTTP(directory.PLCURL) {
			return nil, usage("--plc-url %s: use a URL of http or https", plcURL)
		}
		id, err := directory.LookupHandle(ctx, handle)
		switch {
		case errors.Is(err, identity.ErrHandleNotFound):
			return nil, &exitError{errors.New("--did " + name + ": nobody has this handle"), exitFailed}
		case err != nil:
			return nil, &exitError{errors.New("--did " + name + ": " + harmless(err.Error())), exitFailed}
		}
		dids = append(dids, id.DID.String())
	}
	return dids, nil
}
