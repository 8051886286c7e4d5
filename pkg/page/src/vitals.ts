// What /status says, every two seconds while anybody looks.

import { Chart, type Legend, type Sample } from "./chart";
import { byId, el, setText } from "./dom";
import { bytes, count, duration, rate } from "./format";

interface Rate {
  total: number;
  per_second: number;
}

export interface Status {
  version: string;
  time: string;
  uptime_seconds: number;
  events: Rate & { kinds: Record<string, Rate>; collections: (Rate & { collection: string })[] };
  consumers: { connected: number; events: Rate; bytes: Rate; saved: Rate };
  upstream: { connected: boolean; since: string; lag_seconds: number | null };
  replay: { oldest_cursor: number; last_cursor: number; seconds: number };
  dictionaries: { primary: number; current: number };
  history?: { seconds_each: number; per_second: number[]; collections: { collection: string; per_second: number[] }[] };
}

const everyMs = 2000;

export class Vitals {
  last: Status | null = null;
  private readonly chart = new Chart(byId("chart"));
  private timer: ReturnType<typeof setTimeout> | undefined;
  private fresh = false; // the chart has what was before

  constructor(
    private readonly changed: (s: Status) => void,
    private readonly chosen: (collection: string) => void,
  ) {
    document.addEventListener("visibilitychange", () => {
      if (document.hidden) {
        clearTimeout(this.timer);
        this.fresh = false;
      } else void this.poll();
    });
  }

  async poll() {
    clearTimeout(this.timer);
    if (document.hidden) return;
    try {
      const answer = await fetch(this.fresh ? "/status" : "/status?history");
      if (!answer.ok) throw new Error(answer.statusText);
      this.show((await answer.json()) as Status);
    } catch {
      // The stream says that the server is away; here the last figures stay.
      this.fresh = false;
    }
    this.timer = setTimeout(() => void this.poll(), everyMs);
  }

  private show(s: Status) {
    this.last = s;
    const now = Date.parse(s.time) / 1000;
    const by = new Map(s.events.collections.map((c) => [c.collection, c.per_second]));
    if (s.history !== undefined) {
      const h = s.history;
      this.legend(this.chart.reset(h.per_second.map((all, i): Sample => ({
        at: now - (h.per_second.length - 1 - i) * h.seconds_each,
        all,
        by: new Map(h.collections.map((c) => [c.collection, c.per_second[i] ?? 0])),
      }))));
      this.fresh = true;
    } else {
      this.legend(this.chart.add({ at: now, all: s.events.per_second, by }));
    }

    setText(byId("rate"), rate(s.events.per_second));
    setText(byId("total"), `${count(s.events.total)} since the start`);
    setText(byId("consumers"), count(s.consumers.connected));
    setText(byId("consumers-sub"), `${bytes(s.consumers.bytes.per_second)}/s sent`);
    const sent = s.consumers.bytes.per_second;
    const saved = s.consumers.saved.per_second;
    setText(byId("saved"), `${bytes(saved)}/s`);
    setText(byId("saved-sub"), saved > 0 ? `${Math.round((100 * saved) / (saved + sent))} % of what would be sent` : "nobody asks for zstd now");
    const up = s.upstream;
    setText(byId("lag"), !up.connected ? "not connected" : up.lag_seconds === null ? "–" : duration(Math.max(0, up.lag_seconds)));
    byId("lag").classList.toggle("bad", !up.connected);
    setText(byId("lag-sub"), `${up.connected ? "connected" : "away"} for ${duration(Math.max(0, now - Date.parse(up.since) / 1000))}`);
    setText(byId("replay"), s.replay.oldest_cursor > 0 ? duration(s.replay.seconds) : "nothing yet");
    setText(byId("replay-sub"), s.replay.oldest_cursor > 0 ? `to cursor ${s.replay.oldest_cursor}` : " ");
    setText(byId("uptime"), duration(s.uptime_seconds));
    setText(byId("started"), `since ${new Date((now - s.uptime_seconds) * 1000).toLocaleString([], { dateStyle: "medium", timeStyle: "short" })}`);
    setText(byId("version"), s.version);
    this.changed(s);
  }

  private legend(l: Legend) {
    const list = byId("legend");
    // Buttons stay as they are while they can: one may have the focus.
    const key = l.map((x) => x.name).join();
    if (list.dataset["key"] !== key) {
      list.dataset["key"] = key;
      list.replaceChildren(...l.map((x) => {
        const dot = x.name.lastIndexOf(".") + 1;
        const name = x.name === "" ? ["everything else"] : [el("span", { class: "dim" }, x.name.slice(0, dot)), x.name.slice(dot)];
        const parts = [el("span", { class: "swatch", "aria-hidden": "true" }), el("bdi", { class: "name" }, ...name), el("span", { class: "value" })];
        if (x.name === "") return el("li", {}, el("span", { class: "entry" }, ...parts));
        const b = el("button", { type: "button", class: "entry", title: "Add to the filter" }, ...parts);
        b.addEventListener("click", () => this.chosen(x.name));
        return el("li", {}, b);
      }));
      for (const [i, item] of [...list.children].entries()) item.querySelector<HTMLElement>(".swatch")!.style.background = l[i]!.color;
    }
    for (const [i, item] of [...list.children].entries()) setText(item.querySelector(".value")!, rate(l[i]!.rate));
  }
}
