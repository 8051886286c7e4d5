// One line that says what an event is about.

import { shortDID } from "./format";
import type { Event } from "./protocol";

const object = (x: unknown): Record<string, unknown> => (typeof x === "object" && x !== null ? (x as Record<string, unknown>) : {});
const text = (x: unknown): string => (typeof x === "string" ? x : "");
const list = (x: unknown): unknown[] => (Array.isArray(x) ? x : []);

// target names a record or repo that another one points to.
function target(x: unknown): string {
  const uri = text(x) || text(object(x)["uri"]);
  const m = /^at:\/\/([^/]+)(?:\/([^/]+)(?:\/([^/]+))?)?$/.exec(uri);
  if (m === null) return uri.startsWith("did:") ? shortDID(uri) : uri;
  const what = m[2]?.split(".").at(-1);
  return what === undefined ? shortDID(m[1]!) : `${what} of ${shortDID(m[1]!)}`;
}

function embed(x: unknown): string {
  const e = object(x);
  const images = list(e["images"]);
  if (images.length > 0) {
    const alt = images.map((i) => text(object(i)["alt"])).find((a) => a !== "");
    return `[${images.length === 1 ? "image" : `${images.length} images`}${alt ? `: ${alt}` : ""}]`;
  }
  const external = object(e["external"]);
  if (text(external["uri"]) !== "") return `[link: ${text(external["title"]) || text(external["uri"])}]`;
  if (e["video"] !== undefined) return "[video]";
  if (e["record"] !== undefined) return `[quotes ${target(object(e["record"])["uri"] ?? object(object(e["record"])["record"])["uri"])}]`;
  return e["media"] !== undefined ? embed(e["media"]) : "";
}

// The fields that records of all kinds have their words in.
const words = ["text", "title", "name", "displayName", "description", "content", "summary", "value", "status", "url", "uri"];

function generic(r: Record<string, unknown>): string {
  const found = words.map((w) => text(r[w])).filter((w) => w !== "");
  if (found.length > 0) return found.slice(0, 2).join(" — ");
  if (r["subject"] !== undefined) return target(r["subject"]);
  return Object.keys(r).filter((k) => k !== "$type" && k !== "createdAt").join(", ");
}

function record(e: Event): string {
  const r = object(e.record);
  switch (e.collection) {
    case "app.bsky.feed.post": {
      const said = [text(r["text"]), embed(r["embed"])].filter((s) => s !== "").join(" ");
      return r["reply"] !== undefined ? `↳ ${said}` : said;
    }
    case "app.bsky.feed.like":
    case "app.bsky.feed.repost":
    case "app.bsky.graph.follow":
    case "app.bsky.graph.block":
    case "app.bsky.graph.listblock":
      return target(r["subject"]);
    case "app.bsky.graph.listitem":
      return `${target(r["subject"])} into ${target(r["list"])}`;
    case "app.bsky.actor.profile":
      return [text(r["displayName"]), text(r["description"])].filter((s) => s !== "").join(" — ") || "an empty profile";
    default:
      return generic(r);
  }
}

const longest = 300;

export function summary(e: Event): string {
  let s: string;
  switch (e.kind) {
    case "commit":
      s = e.operation === "delete" ? e.rkey : record(e);
      break;
    case "identity":
      s = e.handle !== "" ? `is @${e.handle}` : "identity changed";
      break;
    case "account":
      s = e.account?.active ? "account is active" : `account is ${e.account?.status || "not active"}`;
      break;
    case "sync":
      s = "repository starts anew";
      break;
    default:
      s = "";
  }
  return s.slice(0, longest).replace(/\s+/g, " ").trim();
}
