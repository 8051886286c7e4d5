// What a stream is asked for, in the words of the two protocols. The page and its worker share
// it; nothing here touches the network.

export type Kind = "commit" | "identity" | "account" | "sync";

export interface Filter {
  collections: string[]; // NSIDs or prefixes like app.bsky.graph.*
  dids: string[];
  kinds: Kind[];
  maxBytes: number; // 0: no limit
}

export type Start = { at: "now" } | { at: "minutes"; minutes: number } | { at: "cursor"; cursor: number };

export interface Wanted {
  filter: Filter;
  start: Start;
  zstd: boolean;
}

export const kindsOfV1: readonly Kind[] = ["commit", "identity", "account"];
export const allKinds: readonly Kind[] = [...kindsOfV1, "sync"];

// The v2 wire's seq is the v1 wire's time_us less this.
export const v2Epoch = 1_600_000_000_000_000;

// wireOf says which protocol can carry a filter. v1 can change it on the open socket, v2 alone
// knows kinds: so it is v1 as long as the kinds are those that v1 sends.
export function wireOf(f: Filter): "v1" | "v2" {
  return f.kinds.length === kindsOfV1.length && kindsOfV1.every((k) => f.kinds.includes(k)) ? "v1" : "v2";
}

// escape leaves readable what a query may hold as it is.
const escape = (s: string) => encodeURIComponent(s).replaceAll("%3A", ":");

// pathOf returns path and query. cursor may be an expression, which is not escaped.
export function pathOf(f: Filter, cursor: string | null, dictionary: number): string {
  const query: string[] = [];
  const v1 = wireOf(f) === "v1";
  if (!v1 && f.kinds.length < allKinds.length) query.push(...f.kinds.map((k) => `kinds=${k}`));
  query.push(...f.collections.map((c) => `${v1 ? "wantedCollections" : "collections"}=${escape(c)}`));
  query.push(...f.dids.map((d) => `${v1 ? "wantedDids" : "dids"}=${escape(d)}`));
  if (f.maxBytes > 0) query.push(`maxMessageSizeBytes=${f.maxBytes}`);
  if (cursor !== null) query.push(`cursor=${cursor}`);
  if (dictionary > 0) query.push(`zstdDictionary=${dictionary}`);
  const path = v1 ? "/subscribe" : "/xrpc/network.bsky.jetstream.subscribeEvents";
  return path + (query.length > 0 ? "?" + query.join("&") : "");
}

// cursorOf returns where a start is now, or null for live.
export function cursorOf(s: Start, now: number): number | null {
  switch (s.at) {
    case "now":
      return null;
    case "minutes":
      return Math.round((now - s.minutes * 60_000) * 1000);
    case "cursor":
      return s.cursor;
  }
}

export function optionsUpdate(f: Filter): string {
  return JSON.stringify({
    type: "options_update",
    payload: { wantedCollections: f.collections, wantedDids: f.dids, maxMessageSizeBytes: f.maxBytes },
  });
}

// A message as either wire has it, as far as the page looks at it.
export interface Event {
  timeUs: number;
  kind: string;
  did: string;
  operation: string;
  collection: string;
  rkey: string;
  record: unknown;
  handle: string; // of an identity event
  account: { active: boolean; status: string } | null;
}

const object = (x: unknown): Record<string, unknown> => (typeof x === "object" && x !== null ? (x as Record<string, unknown>) : {});
const text = (x: unknown): string => (typeof x === "string" ? x : "");

// parse reads a message; null: it is no event. What is missing or of another type is empty:
// the network is not to be trusted with it.
export function parse(json: string): Event | null {
  let m: Record<string, unknown>;
  try {
    m = object(JSON.parse(json));
  } catch {
    return null;
  }
  let kind = text(m["kind"]);
  let timeUs = m["time_us"];
  let body = object(m[kind]);
  if (m["payload"] !== undefined) {
    m = body = object(m["payload"]);
    kind = text(m["$type"]).split("#")[1] ?? "";
    timeUs = typeof m["seq"] === "number" ? m["seq"] + v2Epoch : undefined;
  }
  if (typeof timeUs !== "number") return null;
  return {
    timeUs,
    kind,
    did: text(m["did"]),
    operation: text(body["operation"]),
    collection: text(body["collection"]),
    rkey: text(body["rkey"]),
    record: body["record"],
    handle: kind === "identity" ? text(body["handle"]) : "",
    account: kind === "account" ? { active: body["active"] === true, status: text(body["status"]) } : null,
  };
}
