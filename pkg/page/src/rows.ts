// The list of events: as many as a person can see come, and stay; the rest is counted.

import { byId, el, setText } from "./dom";
import { clock, count, shortDID } from "./format";
import type { Row } from "./messages";
import { type Event, parse } from "./protocol";
import { summary } from "./summary";

const maxRows = 150;
const tickMs = 250;
const perTick = 5; // twenty a second: what can just be read
const settled = 40; // rows that may come at once, to fill the page
const holdMs = 1500; // how long the list keeps still after the pointer moved over it

export interface Shown {
  row: Row;
  event: Event;
}

const operations: Record<string, string> = { create: "+", update: "~", delete: "−" };

export class Rows {
  paused = false;
  private readonly list = byId("rows");
  private readonly shown = new WeakMap<Element, Shown>();
  private pending: Row[] = [];
  private timer: ReturnType<typeof setTimeout> | undefined;
  private heldUntil = 0;
  private received = 0;
  private missed = 0; // since the list was last still

  // Of the stream, for the toolbar.
  skipped = 0;

  constructor(private readonly opened: (s: Shown, from: HTMLElement) => void) {
    this.list.addEventListener("click", (e) => this.open(e.target as Element));
    this.list.addEventListener("keydown", (e) => this.key(e));
    // Nothing may move away under a pointer that is about to click.
    this.list.addEventListener("pointermove", () => this.hold());
    this.list.addEventListener("pointerleave", () => (this.heldUntil = 0));
  }

  // add takes what came: events in all, of which rows are the newest.
  add(events: number, rows: Row[]) {
    this.received += events;
    this.missed += events;
    this.pending.push(...rows);
    this.skipped += events - rows.length;
    if (this.pending.length > maxRows) {
      this.skipped += this.pending.length - maxRows;
      this.pending = this.pending.slice(-maxRows);
    }
    if (this.timer === undefined) this.schedule();
  }

  pause(on: boolean) {
    this.paused = on;
    this.missed = 0;
    if (!on) this.schedule();
    this.tell();
  }

  clear() {
    this.list.replaceChildren();
    this.pending = [];
    this.received = this.skipped = this.missed = 0;
    byId("empty").hidden = false;
    this.tell();
  }

  private hold() {
    this.heldUntil = performance.now() + holdMs;
  }

  private still(): boolean {
    return this.paused || performance.now() < this.heldUntil || this.list.contains(document.activeElement);
  }

  private schedule() {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => requestAnimationFrame(() => this.tick()), tickMs);
  }

  private tick() {
    this.timer = undefined;
    setText(byId("received"), count(this.received));
    const still = this.still();
    if (!still) {
      this.missed = 0;
      this.draw();
    }
    setText(byId("skipped"), count(this.skipped));
    byId("unseen-part").hidden = this.skipped === 0;
    this.tell();
    if (this.pending.length > 0 && !this.paused) this.schedule();
  }

  private tell() {
    const held = byId("held");
    const still = this.still();
    held.hidden = !still;
    if (!still) return;
    setText(held, `${this.paused ? "Paused" : "Held while you are in the list"} · ${count(this.missed)} more since`);
  }

  private draw() {
    const room = Math.max(perTick, settled - this.list.childElementCount);
    let batch = this.pending;
    if (batch.length > room) {
      this.skipped += batch.length - room;
      batch = batch.slice(-room);
    }
    this.pending = [];
    const made: HTMLElement[] = [];
    for (const row of batch) {
      const event = parse(row.json);
      if (event !== null) made.push(this.row({ row, event }));
    }
    if (made.length === 0) return;
    const tabbable = this.list.querySelector('[tabindex="0"]');
    this.list.prepend(...made.reverse());
    while (this.list.childElementCount > maxRows) this.list.lastElementChild!.remove();
    if (tabbable?.isConnected !== true) this.list.querySelector("button")?.setAttribute("tabindex", "0");
    byId("empty").hidden = true;
  }

  private row(s: Shown): HTMLElement {
    const e = s.event;
    const dot = e.collection.lastIndexOf(".") + 1;
    const what = e.kind === "commit" ? e.operation : e.kind;
    const button = el("button", { type: "button", class: "row", "data-what": what, tabindex: "-1" },
      el("time", { datetime: new Date(e.timeUs / 1000).toISOString() }, clock(e.timeUs)),
      el("span", { class: "what" }, el("span", { "aria-hidden": "true" }, operations[what] ?? "•"), what),
      el("span", { class: "collection", title: e.collection },
        el("bdi", {}, el("span", { class: "dim" }, e.collection.slice(0, dot)), e.collection.slice(dot))),
      el("span", { class: "who", title: e.did }, el("bdi", {}, s.row.handle !== "" ? `@${s.row.handle}` : shortDID(e.did))),
      el("span", { class: "about" }, el("bdi", {}, summary(e))),
    );
    const item = el("li", {}, button);
    this.shown.set(item, s);
    return item;
  }

  private open(target: Element) {
    const item = target.closest("li");
    const s = item === null ? undefined : this.shown.get(item);
    if (s === undefined) return;
    for (const b of this.list.querySelectorAll('[aria-current="true"]')) b.removeAttribute("aria-current");
    const button = item!.querySelector("button")!;
    this.focusable(button);
    button.setAttribute("aria-current", "true");
    this.opened(s, button);
  }

  // One row is in the order of tabs; arrows go from it to the others.
  private focusable(button: HTMLElement) {
    for (const b of this.list.querySelectorAll('[tabindex="0"]')) b.setAttribute("tabindex", "-1");
    button.setAttribute("tabindex", "0");
  }

  private key(e: KeyboardEvent) {
    const item = (e.target as Element).closest("li");
    if (item === null) return;
    const to = {
      ArrowDown: item.nextElementSibling, ArrowUp: item.previousElementSibling,
      Home: this.list.firstElementChild, End: this.list.lastElementChild,
    }[e.key]?.querySelector("button");
    if (to == null) return;
    e.preventDefault();
    this.focusable(to);
    to.focus();
  }
}
