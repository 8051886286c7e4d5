// The event that was clicked.

import { byId, copyText, el, setText } from "./dom";
import { pretty } from "./json";
import type { Shown } from "./rows";

const wide = matchMedia("(min-width: 1000px)");

export class Detail {
  private readonly dialog = byId<HTMLDialogElement>("detail");
  private json = "";
  private from: HTMLElement | null = null;

  constructor(
    private readonly narrow: { collection(name: string): void; did(did: string): void; from(cursor: number): void },
  ) {
    const copy = byId<HTMLButtonElement>("detail-copy");
    copy.addEventListener("click", () => void copyText(this.json, copy));
    byId("detail-close").addEventListener("click", () => this.dialog.close());
    this.dialog.addEventListener("keydown", (e) => {
      if (e.key !== "Escape") return;
      e.preventDefault();
      this.dialog.close();
    });
    this.dialog.addEventListener("click", (e) => e.target === this.dialog && this.dialog.close()); // the backdrop
    this.dialog.addEventListener("close", () => {
      this.from?.removeAttribute("aria-current");
      const back = this.from?.isConnected ? this.from : byId("live");
      back.focus({ preventScroll: true });
      // A row that keeps the focus keeps the list still, which only a keyboard wants.
      if (!back.matches(":focus-visible")) back.blur();
    });
  }

  show(s: Shown, from: HTMLElement) {
    this.json = s.row.json;
    this.from = from;
    const e = s.event;
    setText(byId("detail-title"), e.kind === "commit" ? `${e.operation} ${e.collection.split(".").at(-1)}` : e.kind);
    const facts: [string, string][] = [["Repo", e.did]];
    if (s.row.handle !== "") facts.push(["Handle", `@${s.row.handle}`]);
    if (e.collection !== "") facts.push(["Record", `at://${e.did}/${e.collection}/${e.rkey}`]);
    facts.push(["Cursor", String(e.timeUs)], ["Received", new Date(e.timeUs / 1000).toLocaleString()]);
    byId("facts").replaceChildren(...facts.flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, el("bdi", {}, value))]));

    const action = (label: string, act: () => void) => {
      const b = el("button", { type: "button", class: "quiet" }, label);
      b.addEventListener("click", act);
      return b;
    };
    byId("detail-actions").replaceChildren(
      ...(e.collection !== "" ? [action("Only this collection", () => this.narrow.collection(e.collection))] : []),
      action("Only this repo", () => this.narrow.did(e.did)),
      action("Replay from here", () => this.narrow.from(e.timeUs)),
    );
    byId("json").replaceChildren(pretty(this.json));
    byId("json").scrollTop = 0;
    if (!this.dialog.open) {
      if (wide.matches) this.dialog.show();
      else this.dialog.showModal();
    }
    byId("detail-title").focus({ preventScroll: true });
  }
}
