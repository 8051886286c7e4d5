// A field that takes several values, each a chip, with completion: the combobox pattern of the
// ARIA Authoring Practices.

import { announce, el } from "./dom";

export interface Suggestion {
  value: string;
  note: string;
}

export interface ChipsConfig {
  label: string;
  placeholder: string;
  limit: number;
  // check returns the value as the protocol has it, or why it is none.
  check(text: string): { value: string } | { error: string };
  suggest(text: string): Suggestion[];
  changed(): void;
}

let fields = 0;

export class Chips {
  values: string[] = [];
  private readonly input: HTMLInputElement;
  private readonly chips = el("ul", { class: "chips" });
  private readonly popup: HTMLUListElement;
  private readonly problem: HTMLElement;
  private active = -1;
  private shown: Suggestion[] = [];

  constructor(
    parent: HTMLElement,
    private readonly cfg: ChipsConfig,
  ) {
    const id = `chips-${++fields}`;
    this.input = el("input", {
      id, type: "text", role: "combobox", "aria-autocomplete": "list", "aria-expanded": "false", "aria-controls": `${id}-list`,
      "aria-describedby": `${id}-problem`, placeholder: cfg.placeholder, spellcheck: "false", autocapitalize: "off", autocomplete: "off",
    });
    this.popup = el("ul", { id: `${id}-list`, role: "listbox", class: "popup", "aria-label": cfg.label });
    this.popup.hidden = true;
    this.problem = el("p", { id: `${id}-problem`, class: "problem", role: "alert" });
    this.chips.setAttribute("aria-label", `${cfg.label}: chosen`);
    const box = el("div", { class: "box" }, this.chips, this.input, this.popup);
    parent.append(el("label", { for: id }, cfg.label), box, this.problem);

    box.addEventListener("click", (e) => e.target === box && this.input.focus());
    this.input.addEventListener("input", () => this.open());
    this.input.addEventListener("focus", () => this.open());
    this.input.addEventListener("blur", () => {
      if (this.input.value.trim() !== "") this.take(this.input.value);
      this.close();
    });
    this.input.addEventListener("keydown", (e) => this.key(e));
    this.input.addEventListener("paste", (e) => {
      const text = e.clipboardData?.getData("text") ?? "";
      if (!/[\s,]/.test(text.trim())) return;
      e.preventDefault();
      this.take(text);
    });
    // Before blur, and without it.
    this.popup.addEventListener("mousedown", (e) => {
      e.preventDefault();
      const option = (e.target as Element).closest("li");
      if (option !== null) this.take(this.shown[Number(option.dataset["at"])]!.value);
    });
  }

  // set replaces the values by those that are valid.
  set(values: string[]) {
    const valid = values.map((v) => this.cfg.check(v)).flatMap((c) => ("value" in c ? [c.value] : []));
    this.values = [...new Set(valid)].slice(0, this.cfg.limit);
    this.render();
  }

  // add adds a value from elsewhere on the page.
  add(value: string) {
    this.take(value);
  }

  private key(e: KeyboardEvent) {
    switch (e.key) {
      case "ArrowDown":
      case "ArrowUp": {
        if (this.popup.hidden) this.open();
        const n = this.shown.length;
        if (n === 0) return;
        if (e.key === "ArrowDown") this.active = (this.active + 1) % n;
        else this.active = this.active <= 0 ? n - 1 : this.active - 1;
        this.mark();
        e.preventDefault();
        return;
      }
      case "Enter":
      case ",":
      case " ":
        e.preventDefault();
        if (this.active >= 0 && e.key === "Enter") this.take(this.shown[this.active]!.value);
        else if (this.input.value.trim() !== "") this.take(this.input.value);
        return;
      case "Escape":
        if (!this.popup.hidden) e.preventDefault();
        this.close();
        return;
      case "Backspace":
        if (this.input.value === "" && this.values.length > 0) this.remove(this.values.length - 1);
    }
  }

  private take(text: string) {
    let taken = 0;
    this.problem.textContent = "";
    for (const part of text.split(/[\s,]+/).filter((p) => p !== "")) {
      const checked = this.cfg.check(part);
      if ("error" in checked) this.problem.textContent = checked.error;
      else if (this.values.length >= this.cfg.limit) this.problem.textContent = `At most ${this.cfg.limit.toLocaleString("en-US")}`;
      else if (!this.values.includes(checked.value)) {
        this.values.push(checked.value);
        taken++;
      }
    }
    if (this.problem.textContent === "") this.input.value = "";
    this.close();
    this.render();
    if (taken > 0) {
      announce(`${this.cfg.label}: ${this.values.at(-1)} added`);
      this.cfg.changed();
    }
  }

  private remove(i: number) {
    const [gone] = this.values.splice(i, 1);
    this.problem.textContent = "";
    this.render();
    announce(`${this.cfg.label}: ${gone} removed`);
    this.input.focus();
    this.close();
    this.cfg.changed();
  }

  private render() {
    // Ten thousand DIDs may be asked for, but not looked at.
    const visible = this.values.slice(0, 50);
    this.chips.replaceChildren(
      ...visible.map((v, i) => {
        const button = el("button", { type: "button", "aria-label": `Remove ${v}` }, "×");
        button.addEventListener("click", () => this.remove(i));
        return el("li", {}, el("bdi", {}, v), button);
      }),
    );
    if (this.values.length > visible.length) this.chips.append(el("li", {}, `and ${this.values.length - visible.length} more`));
    this.chips.hidden = this.values.length === 0;
    this.input.placeholder = this.values.length === 0 ? this.cfg.placeholder : "";
  }

  private open() {
    this.active = -1;
    this.shown = this.cfg.suggest(this.input.value.trim().toLowerCase()).filter((s) => !this.values.includes(s.value)).slice(0, 12);
    this.popup.replaceChildren(
      ...this.shown.map((s, i) =>
        el("li", { role: "option", id: `${this.popup.id}-${i}`, "data-at": String(i), "aria-selected": "false" },
          el("bdi", {}, s.value), el("span", { class: "note" }, s.note))),
    );
    this.popup.hidden = this.shown.length === 0;
    this.input.setAttribute("aria-expanded", String(!this.popup.hidden));
    this.mark();
  }

  private close() {
    this.popup.hidden = true;
    this.active = -1;
    this.input.setAttribute("aria-expanded", "false");
    this.mark();
  }

  private mark() {
    for (const [i, option] of [...this.popup.children].entries()) option.setAttribute("aria-selected", String(i === this.active));
    const option = this.popup.children[this.active];
    if (option === undefined) return this.input.removeAttribute("aria-activedescendant");
    this.input.setAttribute("aria-activedescendant", option.id);
    option.scrollIntoView({ block: "nearest" });
  }
}
