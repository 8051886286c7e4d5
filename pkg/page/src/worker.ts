// The stream, off the page's own thread: whatever comes, and however fast, is received,
// decompressed and counted here; the page is told ten times a second, and given no more events
// than it could show.

import { Module, waitInitialized } from "./node_modules/@bokuweb/zstd-wasm/dist/esm/module.js";
import type { Order, Report, Row, State } from "./messages";
import { cursorOf, type Filter, optionsUpdate, parse, pathOf, type Wanted, wireOf } from "./protocol";

const flushMs = 100;
const maxRows = 60; // of a batch
const maxHandles = 20_000;
const maxSeen = 1000;
const maxRetryMs = 10_000;

declare const wasmFile: string; // set by the build

const tell = (r: Report) => postMessage(r);

// Decoder decompresses frames made with one dictionary. Both stay where they are in the memory
// of libzstd.
class Decoder {
  private readonly context: number = Module["_ZSTD_createDCtx"]();
  private readonly at: number;
  private source = 0;
  private sourceSize = 0;
  private target = 0;
  private targetSize = 0;
  private readonly utf8 = new TextDecoder();

  private constructor(
    readonly id: number,
    private readonly dictionary: Uint8Array,
  ) {
    this.at = Module["_malloc"](dictionary.byteLength);
    Module["HEAPU8"].set(dictionary, this.at);
  }

  private static ready: Promise<unknown> | null = null;

  static async load(id: number): Promise<Decoder> {
    if (Decoder.ready === null) {
      Module["init"](new URL(wasmFile, self.location.href).href);
      Decoder.ready = waitInitialized();
    }
    const answer = await fetch(`/dictionary/${id}`);
    if (!answer.ok) throw new Error(await answer.text());
    const dictionary = new Uint8Array(await answer.arrayBuffer());
    await Decoder.ready;
    return new Decoder(id, dictionary);
  }

  decode(frame: Uint8Array): { text: string; bytes: number } {
    [this.source, this.sourceSize] = room(this.source, this.sourceSize, frame.byteLength);
    Module["HEAPU8"].set(frame, this.source);
    const size = Number(Module["_ZSTD_getFrameContentSize"](this.source, frame.byteLength));
    if (!(size >= 0 && size <= 64 << 20)) throw new Error("a frame does not say how long its content is");
    [this.target, this.targetSize] = room(this.target, this.targetSize, size);
    const bytes: number = Module["_ZSTD_decompress_usingDict"](
      this.context, this.target, size, this.source, frame.byteLength, this.at, this.dictionary.byteLength);
    if (Module["_ZSTD_isError"](bytes)) throw new Error("a frame cannot be decompressed");
    return { text: this.utf8.decode(Module["HEAPU8"].subarray(this.target, this.target + bytes)), bytes };
  }

  free() {
    for (const p of [this.at, this.source, this.target]) Module["_free"](p);
    Module["_ZSTD_freeDCtx"](this.context);
  }
}

// room returns a piece of libzstd's memory that is large enough.
function room(at: number, size: number, wanted: number): [number, number] {
  if (size >= wanted && at !== 0) return [at, size];
  if (at !== 0) Module["_free"](at);
  size = Math.max(2 * size, wanted, 4096);
  return [Module["_malloc"](size), size];
}

const utf8 = new TextEncoder();
const scratch = new Uint8Array(64 << 10);

// utf8Length returns how many bytes a text has on the wire.
function utf8Length(s: string): number {
  const { read, written } = utf8.encodeInto(s, scratch);
  return read === s.length ? written : utf8.encode(s).byteLength;
}

const handles = new Map<string, string>();
const seen = new Set<string>();

class Stream {
  private socket: WebSocket | null = null;
  private decoder: Decoder | null = null;
  private last = 0; // time_us of the newest event
  private retryMs = 0;
  private timer: ReturnType<typeof setTimeout> | undefined;
  private flushing = false;
  private turn = 0; // of connecting: whoever finds that it is another's gives up

  private events = 0;
  private rows: Row[] = [];
  private wireBytes = 0;
  private jsonBytes = 0;
  private fresh: string[] = [];

  constructor(
    private readonly id: number,
    private readonly wanted: Wanted,
  ) {}

  private say(state: State, why = "", retryMs = 0) {
    tell({ type: "state", id: this.id, state, why, wire: wireOf(this.wanted.filter), retryMs });
  }

  async connect() {
    const turn = ++this.turn;
    clearTimeout(this.timer);
    this.drop();
    this.say("connecting");
    let path: string;
    try {
      // After a restart with another dictionary the old one may be gone, so that it is asked for
      // each time.
      if (this.wanted.zstd) {
        const id: number = (await (await fetch("/status")).json()).dictionaries.current;
        if (this.decoder?.id !== id) {
          const decoder = await Decoder.load(id);
          if (turn !== this.turn) return decoder.free();
          this.decoder?.free();
          this.decoder = decoder;
        }
      }
      // An event's own cursor is inclusive: take() drops what comes twice.
      const cursor = this.last > 0 ? this.last : cursorOf(this.wanted.start, Date.now());
      path = pathOf(this.wanted.filter, cursor === null ? null : String(cursor), this.wanted.zstd ? this.decoder!.id : 0);
    } catch (e) {
      if (turn === this.turn) this.again(String(e));
      return;
    }
    if (turn !== this.turn) return;
    const asked = this.wanted.filter;
    const socket = new WebSocket(self.location.origin.replace(/^http/, "ws") + path);
    socket.binaryType = "arraybuffer";
    let opened = false;
    socket.onopen = () => {
      opened = true;
      this.say("open");
      if (this.wanted.filter !== asked) socket.send(optionsUpdate(this.wanted.filter));
    };
    socket.onmessage = (m) => {
      try {
        this.take(m.data);
      } catch (e) {
        this.drop();
        this.again(String(e));
      }
    };
    socket.onclose = async (c) => {
      // What the server did not take it would not take again.
      if (opened && c.code === 1008 && this.wanted.filter !== asked) return this.say("refused", c.reason);
      const refused = opened ? null : await refusal(path);
      if (turn !== this.turn) return;
      if (refused?.status === 400) return this.say("refused", refused.text);
      this.again(refused?.text ?? c.reason);
    };
    this.socket = socket;
  }

  // drop ends the connection, of which nothing more is heard.
  private drop() {
    if (this.socket === null) return;
    this.socket.onopen = this.socket.onmessage = this.socket.onclose = null;
    this.socket.close(1000);
    this.socket = null;
  }

  // again connects again, later each time, at a moment of its own: everybody else does too.
  private again(why: string) {
    this.retryMs = Math.min(maxRetryMs, Math.max(500, 2 * this.retryMs));
    const wait = this.retryMs * (0.5 + Math.random() / 2);
    this.say("waiting", why, wait);
    this.timer = setTimeout(() => void this.connect(), wait);
  }

  // filter changes the filter of the open socket. Only v1 can.
  filter(f: Filter) {
    this.wanted.filter = f;
    if (this.socket?.readyState === WebSocket.OPEN) this.socket.send(optionsUpdate(f));
  }

  // compress goes on where the stream is, compressed or not.
  compress(zstd: boolean) {
    this.wanted.zstd = zstd;
    void this.connect();
  }

  close() {
    this.turn++;
    clearTimeout(this.timer);
    this.drop();
    this.flush();
    this.decoder?.free();
    this.decoder = null;
  }

  private take(data: string | ArrayBuffer) {
    let json: string, bytes: number, wire: number;
    if (typeof data === "string") {
      json = data;
      wire = bytes = utf8Length(data);
    } else {
      wire = data.byteLength;
      ({ text: json, bytes } = this.decoder!.decode(new Uint8Array(data)));
    }
    const e = parse(json);
    if (e === null || e.timeUs <= this.last) return;
    this.last = e.timeUs;
    this.retryMs = 0;
    if (e.handle !== "") {
      handles.delete(e.did);
      handles.set(e.did, e.handle);
      if (handles.size > maxHandles) handles.delete(handles.keys().next().value!);
    }
    if (e.collection !== "" && !seen.has(e.collection) && seen.size < maxSeen) {
      seen.add(e.collection);
      this.fresh.push(e.collection);
    }
    this.events++;
    this.wireBytes += wire;
    this.jsonBytes += bytes;
    this.rows.push({ json, handle: handles.get(e.did) ?? "" });
    if (this.rows.length > 2 * maxRows) this.rows = this.rows.slice(-maxRows);
    if (!this.flushing) {
      this.flushing = true;
      setTimeout(() => this.flush(), flushMs);
    }
  }

  private flush() {
    this.flushing = false;
    if (this.events === 0) return;
    tell({
      type: "batch", id: this.id, events: this.events, rows: this.rows.slice(-maxRows),
      wireBytes: this.wireBytes, jsonBytes: this.jsonBytes, seen: this.fresh,
    });
    this.events = this.wireBytes = this.jsonBytes = 0;
    this.rows = [];
    this.fresh = [];
  }
}

// refusal asks without a websocket why there was none: the browser does not tell. null: there is
// no reason any more, or nobody who would say it.
async function refusal(path: string): Promise<{ status: number; text: string } | null> {
  const stop = new AbortController();
  try {
    const answer = await fetch(path, { signal: stop.signal });
    if (![400, 429, 503].includes(answer.status)) return null;
    const text = (await answer.text()).trim();
    try {
      return { status: answer.status, text: String(JSON.parse(text).message ?? text) };
    } catch {
      return { status: answer.status, text };
    }
  } catch {
    return null;
  } finally {
    stop.abort(); // it may be a stream
  }
}

let stream: Stream | null = null;

onmessage = (m: MessageEvent<Order>) => {
  const order = m.data;
  if (order.type === "filter") return stream?.filter(order.filter);
  if (order.type === "compress") return stream?.compress(order.zstd);
  stream?.close();
  stream = new Stream(order.id, order.wanted);
  void stream.connect();
};
