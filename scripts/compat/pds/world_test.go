//go:build compat

package pds

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"
)

type object = map[string]any

// world writes to the PDS and keeps what a consumer must see of it, in order.
type world struct {
	pds       *upstream
	witnesses []*witness
	want      []event
}

// account is one that has been created.
type account struct {
	did, handle, token string
}

// ref is a record that has been written.
type ref struct {
	URI string `json:"uri"`
	CID string `json:"cid"`
}

func (r ref) rkey() string { return r.URI[strings.LastIndexByte(r.URI, '/')+1:] }

// client makes a connection for each request: the PDS is ended and started again.
var client = &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 30 * time.Second}

// request calls a method of the PDS: a query if body is nil, else a procedure. It returns
// what the PDS says if that is no success.
func (w *world) request(t testing.TB, method, auth, contentType string, body io.Reader, out any) (refused string) {
	t.Helper()
	verb := http.MethodGet
	if body != nil {
		verb = http.MethodPost
	}
	r, err := http.NewRequest(verb, "http://"+w.pds.addr+"/xrpc/"+method, body)
	if err != nil {
		t.Fatal(err)
	}
	if contentType != "" {
		r.Header.Set("Content-Type", contentType)
	}
	if auth != "" {
		r.Header.Set("Authorization", auth)
	}
	resp, err := client.Do(r)
	if err != nil {
		t.Fatalf("%s: %v; the PDS said:\n%s", method, err, w.pds.Output)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatalf("%s: %v", method, err)
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Sprintf("%s: %s", resp.Status, b)
	}
	if out != nil {
		if err := json.Unmarshal(b, out); err != nil {
			t.Fatalf("%s: %v in %s", method, err, b)
		}
	}
	return ""
}

// procedure calls one that has to succeed.
func (w *world) procedure(t testing.TB, method, auth string, in, out any) {
	t.Helper()
	if refused := w.try(t, method, auth, in, out); refused != "" {
		t.Fatalf("%s: %s", method, refused)
	}
}

func (w *world) try(t testing.TB, method, auth string, in, out any) (refused string) {
	t.Helper()
	if in == nil {
		return w.request(t, method, auth, "", http.NoBody, out)
	}
	b, err := json.Marshal(in)
	if err != nil {
		t.Fatal(err)
	}
	return w.request(t, method, auth, "application/json", bytes.NewReader(b), out)
}

func (w *world) query(t testing.TB, method string, params url.Values, out any) {
	t.Helper()
	if refused := w.request(t, method+"?"+params.Encode(), "", "", nil, out); refused != "" {
		t.Fatalf("%s: %s", method, refused)
	}
}

func (a *account) auth() string { return "Bearer " + a.token }

func (w *world) admin(t testing.TB, method string, in any) {
	t.Helper()
	r, _ := http.NewRequest(http.MethodGet, "http://pds", nil)
	r.SetBasicAuth("admin", w.pds.password)
	w.procedure(t, method, r.Header.Get("Authorization"), in, nil)
}

// expect adds what a consumer has to see next.
func (w *world) expect(e event) { w.want = append(w.want, e) }

// expectSync adds the sync event of a repo's newest commit.
func (w *world) expectSync(t testing.TB, did string) {
	t.Helper()
	var latest struct{ CID, Rev string }
	w.query(t, "com.atproto.sync.getLatestCommit", url.Values{"did": {did}}, &latest)
	w.expect(event{kind: "sync", did: did, rev: latest.Rev, cid: latest.CID})
}

func (w *world) createAccount(t testing.TB, name string) *account {
	t.Helper()
	var out struct{ DID, Handle, AccessJWT string }
	w.procedure(t, "com.atproto.server.createAccount", "", object{
		"handle": name + ".test", "email": name + "@example.com", "password": "correct horse battery staple",
	}, &out)
	w.expect(event{kind: "identity", did: out.DID, handle: out.Handle})
	w.expect(event{kind: "account", did: out.DID, active: true})
	w.expectSync(t, out.DID)
	return &account{did: out.DID, handle: out.Handle, token: out.AccessJWT}
}

// getRecord returns what the PDS has.
func (w *world) getRecord(t testing.TB, a *account, collection, rkey string) (cid string, record any) {
	t.Helper()
	var out struct {
		CID   string
		Value json.RawMessage
	}
	w.query(t, "com.atproto.repo.getRecord", url.Values{"repo": {a.did}, "collection": {collection}, "rkey": {rkey}}, &out)
	record, err := value(out.Value)
	if err != nil {
		t.Fatal(err)
	}
	return out.CID, record
}

// commit is what the PDS says of a write; nil if nothing has changed.
type commit struct{ CID, Rev string }

// written expects a record as the PDS has it now.
func (w *world) written(t testing.TB, a *account, c *commit, operation, collection string, r ref) {
	t.Helper()
	cid, record := w.getRecord(t, a, collection, r.rkey())
	if cid != r.CID {
		t.Fatalf("%s: written as %s, getRecord says %s", r.URI, r.CID, cid)
	}
	w.expect(event{kind: "commit", did: a.did, rev: c.Rev, operation: operation, collection: collection, rkey: r.rkey(), cid: cid, record: record})
}

// create writes a record under a key of the PDS's, or under rkey.
func (w *world) create(t testing.TB, a *account, collection, rkey string, record any) ref {
	t.Helper()
	in := object{"repo": a.did, "collection": collection, "record": record}
	if rkey != "" {
		in["rkey"] = rkey
	}
	var out struct {
		ref
		Commit *commit
	}
	w.procedure(t, "com.atproto.repo.createRecord", a.auth(), in, &out)
	w.written(t, a, out.Commit, "create", collection, out.ref)
	return out.ref
}

func (w *world) put(t testing.TB, a *account, operation, collection, rkey string, record any) {
	t.Helper()
	var out struct {
		ref
		Commit *commit
	}
	w.procedure(t, "com.atproto.repo.putRecord", a.auth(), object{"repo": a.did, "collection": collection, "rkey": rkey, "record": record}, &out)
	switch {
	case out.Commit == nil && operation == "":
	case out.Commit == nil || operation == "":
		t.Fatalf("putRecord %s/%s: commit %v, want operation %q", collection, rkey, out.Commit, operation)
	default:
		w.written(t, a, out.Commit, operation, collection, out.ref)
	}
}

func (w *world) delete(t testing.TB, a *account, collection, rkey string) {
	t.Helper()
	var out struct{ Commit *commit }
	w.procedure(t, "com.atproto.repo.deleteRecord", a.auth(), object{"repo": a.did, "collection": collection, "rkey": rkey}, &out)
	if out.Commit != nil {
		w.expect(event{kind: "commit", did: a.did, rev: out.Commit.Rev, operation: "delete", collection: collection, rkey: rkey})
	}
}

// write is one of several in one commit.
type write struct {
	operation, collection, rkey string
	record                      any
}

// apply makes one commit of several writes. Their records are read after it, so that no two
// of them may be of one key.
func (w *world) apply(t testing.TB, a *account, writes []write) {
	t.Helper()
	var list []object
	for _, x := range writes {
		o := object{"$type": "com.atproto.repo.applyWrites#" + x.operation, "collection": x.collection, "rkey": x.rkey}
		if x.record != nil {
			o["value"] = x.record
		}
		list = append(list, o)
	}
	var out struct {
		Commit  *commit
		Results []ref
	}
	w.procedure(t, "com.atproto.repo.applyWrites", a.auth(), object{"repo": a.did, "writes": list}, &out)
	for i, x := range writes {
		if x.operation == "delete" {
			w.expect(event{kind: "commit", did: a.did, rev: out.Commit.Rev, operation: "delete", collection: x.collection, rkey: x.rkey})
			continue
		}
		w.written(t, a, out.Commit, x.operation, x.collection, out.Results[i])
	}
}

func (w *world) uploadBlob(t testing.TB, a *account, contentType string, data []byte) any {
	t.Helper()
	var out struct{ Blob any }
	if refused := w.request(t, "com.atproto.repo.uploadBlob", a.auth(), contentType, bytes.NewReader(data), &out); refused != "" {
		t.Fatalf("uploadBlob: %s", refused)
	}
	return out.Blob
}

func (w *world) updateHandle(t testing.TB, a *account, handle string) {
	t.Helper()
	w.procedure(t, "com.atproto.identity.updateHandle", a.auth(), object{"handle": handle}, nil)
	a.handle = handle
	w.expect(event{kind: "identity", did: a.did, handle: handle})
}

func (w *world) deactivate(t testing.TB, a *account) {
	t.Helper()
	w.procedure(t, "com.atproto.server.deactivateAccount", a.auth(), object{}, nil)
	w.expect(event{kind: "account", did: a.did, status: "deactivated"})
}

func (w *world) activate(t testing.TB, a *account) {
	t.Helper()
	w.procedure(t, "com.atproto.server.activateAccount", a.auth(), nil, nil)
	w.expect(event{kind: "account", did: a.did, active: true})
	w.expect(event{kind: "identity", did: a.did, handle: a.handle})
	w.expectSync(t, a.did)
}

// takeDown takes an account down, or brings it back.
func (w *world) takeDown(t testing.TB, a *account, applied bool) {
	t.Helper()
	w.admin(t, "com.atproto.admin.updateSubjectStatus", object{
		"subject":  object{"$type": "com.atproto.admin.defs#repoRef", "did": a.did},
		"takedown": object{"applied": applied, "ref": "1"},
	})
	e := event{kind: "account", did: a.did, active: !applied}
	if applied {
		e.status = "takendown"
	}
	w.expect(e)
}

// refused makes sure that an account cannot write, so that nothing is to be seen.
func (w *world) refused(t testing.TB, a *account) {
	t.Helper()
	if w.try(t, "com.atproto.repo.createRecord", a.auth(), object{"repo": a.did, "collection": "app.bsky.feed.post", "record": post("no")}, nil) == "" {
		t.Fatalf("%s can write", a.handle)
	}
}

// settle waits until every witness has everything, and checks it.
func (w *world) settle(t testing.TB) {
	t.Helper()
	for _, x := range w.witnesses {
		eventually(t, 30*time.Second, func() string {
			missing, err := x.check(w.want)
			if err != nil {
				t.Fatalf("%s: %v", x.name, err)
			}
			if missing > 0 {
				return fmt.Sprintf("%s: %d of %d events are missing, the first after %+v", x.name, missing, len(w.want), x.last())
			}
			return ""
		})
	}
}

func post(text string) object {
	return object{"$type": "app.bsky.feed.post", "text": text, "langs": []string{"ja", "en"}, "createdAt": now()}
}

func now() string { return time.Now().UTC().Format("2006-01-02T15:04:05.000Z") }
