// The stream that the page shows, for elsewhere.

import { type Filter, kindsOfV1, pathOf, type Start, type Wanted, wireOf } from "./protocol";

export interface Snippet {
  id: string;
  name: string;
  code(w: Wanted, at: Place): string;
}

export interface Place {
  origin: string; // of the server, http://host or https://host
  dictionary: number; // the id of the one with the smallest frames; 0: not known
}

const ws = (at: Place) => at.origin.replace(/^http/, "ws");

// A start so many minutes ago is written as an expression, which stays right when the snippet
// is used later.
type Minutes = (minutes: number) => string;

const cursor = (s: Start, minutes: Minutes) => (s.at === "now" ? null : s.at === "cursor" ? String(s.cursor) : minutes(s.minutes));

// Nothing in a valid filter means anything to a shell in double quotes.
const shellMinutes: Minutes = (m) => `$(($(date +%s) - ${m * 60}))000000`;

function websocat(w: Wanted, at: Place): string {
  return `websocat "${ws(at)}${pathOf(w.filter, cursor(w.start, shellMinutes), 0)}"`;
}

// Without a websocket there is /subscribe alone, which has no kinds.
function curl(w: Wanted, at: Place): string {
  const filter: Filter = { ...w.filter, kinds: [...kindsOfV1] };
  const url = `curl -N "${at.origin}${pathOf(filter, cursor(w.start, shellMinutes), 0)}"`;
  if (wireOf(w.filter) === "v1") return url;
  const kinds = w.filter.kinds.filter((k) => kindsOfV1.includes(k));
  if (kinds.length === kindsOfV1.length) return `${url}  # without sync events, which the websocket alone has`;
  return `${url} | jq -c 'select(${kinds.map((k) => `.kind == "${k}"`).join(" or ") || "false"})'`;
}

// quoted is a string literal of JavaScript and Python.
const quoted = (s: string) => JSON.stringify(s);

// v2 events are one level deeper.
const payload = (f: Filter) => (wireOf(f) === "v1" ? "" : ".payload");

function javascript(w: Wanted, at: Place): string {
  const c = cursor(w.start, (m) => `\${(Date.now() - ${m * 60_000}) * 1000}`);
  const url = ws(at) + pathOf(w.filter, c, 0);
  const literal = w.start.at === "minutes" ? "`" + url.replaceAll("`", "%60") + "`" : quoted(url);
  return `const socket = new WebSocket(${literal});
socket.onmessage = (message) => {
  const event = JSON.parse(message.data)${payload(w.filter)};
  console.log(event.did, event${wireOf(w.filter) === "v1" ? ".kind" : ".$type"}, event${wireOf(w.filter) === "v1" ? ".commit?.record" : ".record"});
};`;
}

function python(w: Wanted, at: Place): string {
  const zstd = w.zstd && at.dictionary > 0;
  const c = cursor(w.start, (m) => `{int((time.time() - ${m * 60}) * 1e6)}`);
  const url = ws(at) + pathOf(w.filter, c, zstd ? at.dictionary : 0);
  const timed = w.start.at === "minutes";
  const imports = ["asyncio", "json", ...(timed ? ["time"] : []), ...(zstd ? ["urllib.request"] : []), "websockets", ...(zstd ? ["zstandard"] : [])];
  return `${imports.map((i) => `import ${i}`).join("\n")}
${zstd ? `
dictionary = urllib.request.urlopen(${quoted(`${at.origin}/dictionary/${at.dictionary}`)}).read()
zstd = zstandard.ZstdDecompressor(dict_data=zstandard.ZstdCompressionDict(dictionary))
` : ""}
async def main():
    async with websockets.connect(${timed ? "f" : ""}${quoted(url)}) as socket:
        async for message in socket:
            event = json.loads(${zstd ? "zstd.decompress(message)" : "message"})${wireOf(w.filter) === "v1" ? "" : '["payload"]'}
            print(event["did"], event[${wireOf(w.filter) === "v1" ? '"kind"' : '"$type"'}])

asyncio.run(main())`;
}

// fields aligns the fields of a Go struct as gofmt does.
function fields(all: [string, string][], indent: string): string {
  const width = Math.max(...all.map(([name]) => name.length)) + 1;
  return all.map(([name, value]) => `${indent}${`${name}:`.padEnd(width)} ${value},\n`).join("");
}

const strings = (all: string[]) => `[]string{${all.map(quoted).join(", ")}}`;

function go(w: Wanted, at: Place): string {
  const f = w.filter;
  const timed = w.start.at === "minutes";
  const filter: string[] = [];
  if (f.collections.length > 0) filter.push(`Collections: ${strings(f.collections)}`);
  if (f.dids.length > 0) filter.push(`DIDs: ${strings(f.dids)}`);
  if (wireOf(f) === "v2") filter.push(`Kinds: []client.Kind{${f.kinds.map(quoted).join(", ")}}`);
  if (f.maxBytes > 0) filter.push(`MaxSize: ${f.maxBytes}`);
  const config: [string, string][] = [["URL", quoted(ws(at))]];
  if (wireOf(f) === "v2") config.push(["Wire", "client.V2"]);
  if (filter.length > 0) config.push(["Filter", `client.Filter{${filter.join(", ")}}`]);
  if (w.start.at === "cursor") config.push(["Cursor", String(w.start.cursor)]);
  if (w.start.at === "minutes") config.push(["Cursor", `client.At(time.Now().Add(-${w.start.minutes} * time.Minute))`]);
  if (w.zstd) config.push(["Compress", "true"]);
  return `package main

import (
	"context"
	"fmt"
	"log"
${timed ? '\t"time"\n' : ""}
	"slipstream/pkg/client"
)

func main() {
	c, err := client.New(client.Config{
${fields(config, "\t\t")}	})
	if err != nil {
		log.Fatal(err)
	}
	for event, err := range c.Events(context.Background()) {
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(event.DID, event.Kind, event.URI())
	}
}`;
}

export const snippets: readonly Snippet[] = [
  { id: "websocat", name: "websocat", code: websocat },
  { id: "curl", name: "curl", code: curl },
  { id: "javascript", name: "JavaScript", code: javascript },
  { id: "python", name: "Python", code: python },
  { id: "go", name: "Go", code: go },
];
