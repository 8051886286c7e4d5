// Package page is the page at /: the stream live, a filter for it, and what /status says. It
// uses the public endpoints and nothing else, so that it is also an example of how a browser is
// to use them: src/worker.ts is the client.
//
// The sources in src are built by esbuild into dist (make page), which is committed, so that
// go build, go install and the container image need no Node.js. A build is the same bytes
// everywhere; make test-browser holds dist against it. Assets carry a hash of their contents
// in their names and never change; the page that names them is asked for each time.
//
// What the libraries are for: uPlot draws the chart, in 50 KB and without a framework;
// @bokuweb/zstd-wasm is libzstd with dictionaries, fetched only by who switches compression on.
//
// Decisions. The stream is received in a worker, which counts everything and passes on, ten times
// a second, no more than a person could see: so thousands of events a second cost the page's own
// thread nothing. The page speaks v1, whose filters can be changed on the open connection, until
// kinds are chosen, which only v2 knows; then each change connects anew. The Content-Security-Policy
// allows nothing but this server's own files, and nothing inline; what comes from the network is
// put into the document as text.
package page
