// Package deploy holds what an installation needs beside the binary: a unit for systemd,
// configurations of two reverse proxies, a compose file, Prometheus's alerts and a dashboard.
// Its tests, `make deploy-test`, hold each file as it is here against the real binary and the
// program that reads it, from Debian's packages: systemd itself runs the unit, as the first
// process of namespaces of its own; Caddy and nginx serve consumers; Prometheus scrapes a daemon,
// evaluates every alert and answers every query of the dashboard. Only what cannot be on
// a test's machine is replaced, and what is replaced must occur: names, ports, certificates.
//
// As root the tests install what is missing with apt-get; a test that still lacks a program, or
// root, is skipped, and says what for.
//
// No test has a Docker engine. The image's steps are run as the Dockerfile has them, in a copy of
// the repository, and what they make runs in a directory that holds what the image would.
package deploy
