// JSON for reading. It is laid out from the text itself, so that numbers keep every digit.

const token = /"(?:[^"\\]|\\.)*"|[{}[\],:]|[^\s{}[\],:"]+/g;

// longest is how much of an event is shown.
const longest = 100_000;

export function pretty(json: string): DocumentFragment {
  const out = document.createDocumentFragment();
  let plain = "";
  let depth = 0;
  const tokens = json.slice(0, longest).match(token) ?? [];
  const line = () => "\n" + "  ".repeat(Math.min(depth, 40));
  const part = (kind: string, text: string) => {
    out.append(plain);
    plain = "";
    const span = document.createElement("span");
    span.className = kind;
    span.textContent = text;
    out.append(span);
  };
  for (const [i, t] of tokens.entries()) {
    const next = tokens[i + 1];
    switch (t) {
      case "{":
      case "[":
        depth++;
        plain += t;
        if (next !== "}" && next !== "]") plain += line();
        break;
      case "}":
      case "]":
        depth--;
        if (tokens[i - 1] !== "{" && tokens[i - 1] !== "[") plain += line();
        plain += t;
        break;
      case ",":
        plain += t + line();
        break;
      case ":":
        plain += ": ";
        break;
      default:
        part(next === ":" ? "k" : t.startsWith('"') ? "s" : "n", t);
    }
  }
  out.append(plain);
  if (json.length > longest) out.append(`\n… and ${json.length - longest} characters more: copy has them all`);
  return out;
}
