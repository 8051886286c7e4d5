// Everything that comes from the network gets into the document through these, as text.

export function byId<T extends HTMLElement = HTMLElement>(id: string): T {
  const found = document.getElementById(id);
  if (found === null) throw new Error(`there is no #${id}`);
  return found as T;
}

type Child = Node | string;

export function el<K extends keyof HTMLElementTagNameMap>(
  tag: K,
  attributes: Record<string, string> = {},
  ...children: Child[]
): HTMLElementTagNameMap[K] {
  const e = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) e.setAttribute(name, value);
  e.append(...children);
  return e;
}

// setText writes only what differs, so that nobody is told what has not changed.
export function setText(e: Element, text: string) {
  if (e.textContent !== text) e.textContent = text;
}

// announce has a screen reader say something.
export function announce(text: string) {
  setText(byId("announce"), text);
}

// copyText copies to the clipboard, also where the page is not served by TLS and the
// browser's own way is closed, and says so on the button.
export async function copyText(text: string, button: HTMLButtonElement) {
  let copied = false;
  try {
    await navigator.clipboard.writeText(text);
    copied = true;
  } catch {
    const area = el("textarea", { class: "unseen", "aria-hidden": "true" });
    area.value = text;
    const before = document.activeElement;
    (button.closest("dialog") ?? document.body).append(area);
    area.select();
    copied = document.execCommand("copy");
    area.remove();
    if (before instanceof HTMLElement) before.focus();
  }
  const label = button.dataset["label"] ?? button.textContent ?? "";
  button.dataset["label"] = label;
  button.textContent = copied ? "Copied" : "Cannot copy";
  announce(copied ? "Copied" : "The browser does not let this page copy");
  setTimeout(() => (button.textContent = label), 1500);
}
