// The page: a filter, the stream that it asks for, and what the server says of itself.

import { Chips, type Suggestion } from "./chips";
import { Detail } from "./detail";
import { announce, byId, copyText, el, setText } from "./dom";
import { bytes, duration, rate } from "./format";
import type { Order, Report } from "./messages";
import { allKinds, type Filter, type Kind, kindsOfV1, type Start, type Wanted, wireOf } from "./protocol";
import { Rows } from "./rows";
import { snippets } from "./snippets";
import { Vitals } from "./vitals";

declare const workerFile: string; // set by the build

const worker = new Worker(new URL(workerFile, import.meta.url), { type: "module" });
const order = (o: Order) => worker.postMessage(o);

// What flows, for completion: names that the stream has shown.
const flowing = new Set<string>();

let zstd = false;
let stream = 0; // the id of the last open
let lastWire = "v1";

// --- The filter ---

const nsid = /^[a-zA-Z]([a-zA-Z0-9-]{0,62})(\.[a-zA-Z0-9]([a-zA-Z0-9-]{0,62})?)+$/;

const collections = new Chips(byId("collections"), {
  label: "Collections",
  placeholder: "all: app.bsky.feed.post, app.bsky.graph.*",
  limit: 100,
  check(text) {
    if (nsid.test(text) || (text.endsWith(".*") && nsid.test(text.slice(0, -2)))) return { value: text };
    return { error: `${text.slice(0, 60)} is neither a collection, like app.bsky.feed.post, nor a prefix, like app.bsky.graph.*` };
  },
  suggest: suggestCollections,
  changed: filterChanged,
});

const dids = new Chips(byId("dids"), {
  label: "Repos",
  placeholder: "all: did:plc:…",
  limit: 10_000,
  check(text) {
    const did = /^(?:at:\/\/)?(did:[a-z]+:[a-zA-Z0-9._:%-]+)/.exec(text)?.[1];
    return did !== undefined ? { value: did } : { error: `${text.slice(0, 60)} is no DID, which is like did:plc:ewvi7nxzyoun6zhxrhs64oiz` };
  },
  suggest: () => [],
  changed: filterChanged,
});

function suggestCollections(text: string): Suggestion[] {
  const rates = new Map<string, number>();
  for (const name of flowing) rates.set(name, 0);
  for (const c of vitals.last?.events.collections ?? []) rates.set(c.collection, c.per_second);
  const prefixes = new Map<string, { n: number; rate: number }>();
  for (const [name, r] of rates) {
    const parts = name.split(".");
    for (let i = 2; i < parts.length; i++) {
      const prefix = parts.slice(0, i).join(".") + ".*";
      const p = prefixes.get(prefix) ?? { n: 0, rate: 0 };
      prefixes.set(prefix, { n: p.n + 1, rate: p.rate + r });
    }
  }
  const all: (Suggestion & { rate: number })[] = [...rates].map(([value, r]) => ({ value, note: `${rate(r)}/s`, rate: r }));
  for (const [value, p] of prefixes) if (p.n > 1) all.push({ value, note: `${p.n} collections, ${rate(p.rate)}/s`, rate: p.rate });
  return all.filter((s) => s.value.toLowerCase().includes(text)).sort((a, b) => b.rate - a.rate || a.value.localeCompare(b.value));
}

const kindBoxes = [...document.querySelectorAll<HTMLInputElement>("#kinds input")];
const size = byId<HTMLInputElement>("size");
const start = byId<HTMLSelectElement>("start");
const minutes = byId<HTMLInputElement>("start-minutes");
const cursor = byId<HTMLInputElement>("start-cursor");

function filter(): Filter {
  return {
    collections: [...collections.values],
    dids: [...dids.values],
    kinds: kindBoxes.filter((b) => b.checked).map((b) => b.value as Kind),
    maxBytes: Math.max(0, Math.floor(Number(size.value) || 0)),
  };
}

function startOf(): Start {
  if (start.value === "minutes") return { at: "minutes", minutes: Math.max(1, Math.floor(Number(minutes.value) || 1)) };
  if (start.value === "cursor" && /^\d{1,16}$/.test(cursor.value.trim())) return { at: "cursor", cursor: Number(cursor.value.trim()) };
  return { at: "now" };
}

const wanted = (): Wanted => ({ filter: filter(), start: startOf(), zstd });

// filterChanged brings the stream what the filter says: by an options update, where the open
// socket can take one.
function filterChanged() {
  const f = filter();
  if (f.kinds.length === 0) return hint();
  if (wireOf(f) === "v1" && lastWire === "v1" && state !== "refused") {
    order({ type: "filter", filter: f });
    remember();
  } else open();
}

function open() {
  lastWire = wireOf(filter());
  plainBytes = wireBytes = 0;
  order({ type: "open", id: ++stream, wanted: wanted() });
  remember();
}

// remember keeps the filter in the address, which can be reloaded and passed on, and shows what
// depends on it.
function remember() {
  const f = filter();
  const s = startOf();
  const q = new URLSearchParams();
  for (const c of f.collections) q.append("collection", c);
  if (f.dids.length <= 100) for (const d of f.dids) q.append("did", d);
  if (wireOf(f) === "v2") q.set("kinds", f.kinds.join("."));
  if (f.maxBytes > 0) q.set("maxBytes", String(f.maxBytes));
  if (s.at === "minutes") q.set("minutes", String(s.minutes));
  if (s.at === "cursor") q.set("cursor", String(s.cursor));
  if (zstd) q.set("zstd", "1");
  const hash = q.toString();
  history.replaceState(null, "", hash === "" ? location.pathname : `#${hash}`);
  hint();
  showSnippet();
}

function recall() {
  const q = new URLSearchParams(location.hash.slice(1));
  collections.set(q.getAll("collection"));
  dids.set(q.getAll("did"));
  const kinds = q.get("kinds")?.split(".").filter((k) => (allKinds as string[]).includes(k)) ?? kindsOfV1;
  for (const b of kindBoxes) b.checked = (kinds as string[]).includes(b.value);
  size.value = /^\d+$/.test(q.get("maxBytes") ?? "") ? q.get("maxBytes")! : "";
  start.value = q.has("minutes") ? "minutes" : q.has("cursor") ? "cursor" : "now";
  if (q.has("minutes")) minutes.value = q.get("minutes")!;
  if (q.has("cursor")) cursor.value = q.get("cursor")!;
  zstd = q.has("zstd");
  byId("zstd").setAttribute("aria-checked", String(zstd));
  showStart();
}

function hint() {
  const f = filter();
  let text = "Changes go to the open connection, as an options_update.";
  if (f.kinds.length === 0) text = "Choose at least one kind.";
  else if (start.value === "cursor" && startOf().at === "now") text = "A cursor is a number, of microseconds since 1970: until there is one, the stream begins now.";
  else if (wireOf(f) === "v2") text = "Kinds are a matter of the v2 protocol, which takes its filter from the URL alone: each change connects anew.";
  setText(byId("hint"), text);
}

function showStart() {
  minutes.hidden = start.value !== "minutes";
  cursor.hidden = start.value !== "cursor";
}

for (const b of kindBoxes) b.addEventListener("change", filterChanged);
size.addEventListener("change", filterChanged);
start.addEventListener("change", () => {
  showStart();
  if (start.value === "cursor") {
    if (cursor.value === "") cursor.value = String(vitals.last?.replay.oldest_cursor || "");
    cursor.focus();
  }
  restart();
});
minutes.addEventListener("change", restart);
cursor.addEventListener("change", restart);
byId("filter").addEventListener("submit", (e) => e.preventDefault());
byId("reset").addEventListener("click", () => {
  const began = start.value;
  collections.set([]);
  dids.set([]);
  for (const b of kindBoxes) b.checked = b.value !== "sync";
  size.value = "";
  start.value = "now";
  showStart();
  announce("The filter is clear");
  if (began === "now") filterChanged();
  else restart();
});

// restart begins anew somewhere else.
function restart() {
  rows.clear();
  open();
}

// --- The same stream elsewhere ---

let tab = snippets[0]!;
const tabs = snippets.map((s) => {
  const b = el("button", { type: "button", role: "tab", id: `tab-${s.id}`, "aria-controls": "snippet-panel" }, s.name);
  b.addEventListener("click", () => choose(s));
  return b;
});
byId("tabs").append(...tabs);
byId("tabs").addEventListener("keydown", (e) => {
  const by = { ArrowRight: 1, ArrowLeft: -1 }[e.key];
  if (by === undefined) return;
  e.preventDefault();
  const i = (snippets.indexOf(tab) + by + snippets.length) % snippets.length;
  choose(snippets[i]!);
  tabs[i]!.focus();
});

function choose(s: (typeof snippets)[number]) {
  tab = s;
  for (const [i, b] of tabs.entries()) {
    const on = snippets[i] === s;
    b.setAttribute("aria-selected", String(on));
    b.setAttribute("tabindex", on ? "0" : "-1");
  }
  byId("snippet-panel").setAttribute("aria-labelledby", `tab-${s.id}`);
  showSnippet();
}

function showSnippet() {
  setText(byId("snippet"), tab.code(wanted(), { origin: location.origin, dictionary: vitals.last?.dictionaries.current ?? 0 }));
}

const copySnippet = byId<HTMLButtonElement>("copy-snippet");
copySnippet.addEventListener("click", () => void copyText(byId("snippet").textContent ?? "", copySnippet));

// --- Live ---

const detail = new Detail({
  collection(name) {
    collections.set([name]);
    filterChanged();
  },
  did(did) {
    dids.set([did]);
    filterChanged();
  },
  from(at) {
    start.value = "cursor";
    cursor.value = String(at);
    showStart();
    restart();
  },
});
const rows = new Rows((s, from) => detail.show(s, from));

const pause = byId<HTMLButtonElement>("pause");
pause.addEventListener("click", () => {
  rows.pause(!rows.paused);
  pause.classList.toggle("on", rows.paused);
  setText(pause, rows.paused ? "Resume" : "Pause");
  announce(rows.paused ? "Paused" : "Going on");
});
byId("clear").addEventListener("click", () => {
  rows.clear();
  announce("The list is empty");
});
byId("zstd").addEventListener("click", () => {
  zstd = !zstd;
  byId("zstd").setAttribute("aria-checked", String(zstd));
  recent.length = plainBytes = wireBytes = 0;
  order({ type: "compress", zstd });
  remember();
});

// Bytes of the last seconds, for the meter.
let plainBytes = 0;
let wireBytes = 0;
const recent: { at: number; events: number; json: number; wire: number }[] = [];
const windowMs = 5000;

let state: string = "connecting";
const stateTexts: Record<string, string> = { connecting: "Connecting…", open: "Live", waiting: "Connecting again", refused: "Refused" };

worker.onmessage = (m: MessageEvent<Report>) => {
  const r = m.data;
  if (r.id !== stream) return;
  if (r.type === "state") {
    state = r.state;
    const pill = byId("state");
    pill.dataset["state"] = r.state;
    let text = stateTexts[r.state]!;
    if (r.state === "open") text += ` · ${r.wire}`;
    if (r.state === "waiting") text += ` in ${duration(r.retryMs / 1000)}`;
    setText(byId("state-text"), text);
    pill.title = r.why;
    const empty = byId("empty");
    setText(empty, r.state === "open" ? "Waiting for events…" : r.why !== "" ? `${text}: ${r.why}` : text);
    empty.classList.toggle("bad", r.state === "refused");
    if (r.state === "refused") {
      rows.clear();
      announce(`${text}: ${r.why}`);
    }
    return;
  }
  for (const name of r.seen) flowing.add(name);
  rows.add(r.events, r.rows);
  plainBytes += r.jsonBytes;
  wireBytes += r.wireBytes;
  recent.push({ at: performance.now(), events: r.events, json: r.jsonBytes, wire: r.wireBytes });
};

worker.onerror = () => {
  byId("state").dataset["state"] = "refused";
  setText(byId("state-text"), "This browser cannot run the page");
};

function meter() {
  const now = performance.now();
  while (recent.length > 0 && recent[0]!.at < now - windowMs) recent.shift();
  let events = 0, json = 0, wire = 0;
  for (const w of recent) {
    events += w.events;
    json += w.json;
    wire += w.wire;
  }
  const seconds = windowMs / 1000;
  setText(byId("per-second"), rate(events / seconds));
  const share = json > 0 ? Math.min(1, wire / json) : 1;
  byId("bar-wire").style.width = `${100 * share}%`;
  setText(byId("meter-text"), zstd
    ? `${bytes(wire / seconds)}/s instead of ${bytes(json / seconds)}/s, ${Math.round(100 * (1 - share))} % less`
    : `${bytes(json / seconds)}/s uncompressed`);
  byId("meter").title = `Since the connection was made: ${bytes(wireBytes)} received, ${bytes(plainBytes)} of JSON`;
}
setInterval(meter, 500);

byId("reload").addEventListener("click", () => location.reload());

let version = "";
const vitals = new Vitals(
  (s) => {
    if (tab.id === "python" && zstd) showSnippet();
    if (version !== "" && version !== s.version) byId("newer").hidden = false;
    version ||= s.version;
  },
  (name) => collections.add(name),
);

recall();
choose(tab);
open();
void vitals.poll();
addEventListener("hashchange", () => {
  recall();
  restart();
});
