// What the tests of the page stand on: the real daemon, a simulated relay, and Chromium. Nothing
// is timed: what has to come is waited for, with a patience that a busy machine does not use up.
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { mkdtemp, rm } from "node:fs/promises";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import path from "node:path";
import { chromium } from "playwright-core";

export const patience = 60_000;
export const root = path.resolve(import.meta.dirname, "../..");

export const sleep = (ms) => new Promise((done) => setTimeout(done, ms));

// until waits for ok to return something true, and returns that.
export async function until(what, ok) {
  const end = Date.now() + patience;
  for (;;) {
    const got = await ok();
    if (got) return got;
    if (Date.now() > end) assert.fail(`waited in vain until ${what}`);
    await sleep(50);
  }
}

// freePort returns a port that nobody listened at a moment ago.
function freePort() {
  return new Promise((done) => {
    const s = createServer().listen(0, "127.0.0.1", () => {
      const { port } = s.address();
      s.close(() => done(port));
    });
  });
}

// Process is a program of this project.
class Process {
  constructor(name, args) {
    this.name = name;
    this.said = "";
    this.child = spawn(path.join(root, "bin", name), args, { stdio: ["ignore", "pipe", "pipe"] });
    for (const out of [this.child.stdout, this.child.stderr]) out.on("data", (b) => (this.said = (this.said + b).slice(-20_000)));
    this.ended = new Promise((done) => this.child.on("exit", (code, signal) => done(code ?? signal)));
    this.running = true;
    void this.ended.then(() => (this.running = false));
  }

  // end asks for an orderly end.
  async end() {
    this.child.kill("SIGTERM");
    const code = await this.ended;
    assert.equal(code, 0, `${this.name} ended with ${code}: ${this.said}`);
  }

  async kill() {
    this.child.kill("SIGKILL");
    await this.ended;
  }
}

// Server is a daemon on a simulated relay of its own.
export class Server {
  // start starts both; flags are the relay's.
  static async start(...flags) {
    const s = new Server();
    s.dir = await mkdtemp(path.join(tmpdir(), "slipstream-browser-"));
    const [relay, consumers, admin] = [await freePort(), await freePort(), await freePort()];
    s.url = `http://127.0.0.1:${consumers}/`;
    s.admin = `http://127.0.0.1:${admin}/`;
    s.relay = new Process("simrelay", ["--listen-addr", `127.0.0.1:${relay}`, ...flags]);
    s.args = ["serve", "--upstream-url", `ws://127.0.0.1:${relay}`, "--upstream-cursor", "0", "--listen-addr", `127.0.0.1:${consumers}`,
      "--metrics-listen-addr", `127.0.0.1:${admin}`, "--data-dir", path.join(s.dir, "data"), "--legacy-dictionary", "off", "--log-level", "error"];
    await s.startDaemon();
    return s;
  }

  async startDaemon() {
    this.daemon = new Process("slipstream", this.args);
    await until(`${this.url} answers`, async () => {
      assert.ok(this.daemon.running && this.relay.running, `ended: ${this.daemon.said}${this.relay.said}`);
      return fetch(`${this.url}status`).then((r) => r.ok, () => false);
    });
  }

  async status() {
    return (await fetch(`${this.url}status`)).json();
  }

  // metric returns the sum of a metric's samples.
  async metric(name) {
    const text = await (await fetch(`${this.admin}metrics`)).text();
    return text.split("\n").filter((l) => l.startsWith(name + "{") || l.startsWith(name + " ")).reduce((sum, l) => sum + Number(l.split(" ").at(-1)), 0);
  }

  async stop() {
    if (this.daemon?.running) await this.daemon.kill();
    await this.relay.kill();
    await rm(this.dir, { recursive: true, force: true });
  }
}

export async function launch() {
  const profile = await mkdtemp(path.join(tmpdir(), "slipstream-chromium-"));
  const context = await chromium.launchPersistentContext(profile, {
    executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium", headless: true, viewport: null,
    args: ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
      "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage"],
  });
  const browser = context.browser();
  return {
    browser: browser ?? context,
    async close() {
      await context.close();
      await rm(profile, { recursive: true, force: true });
    },
  };
}

let clipboard = Promise.resolve();

// Page is the page of a server in a window of its own. Whatever its console calls an error, and
// every request that goes elsewhere, is kept for check.
export class Page {
  static async open(browser, server, options = {}, hash = "") {
    const p = new Page();
    p.server = server;
    p.context = await browser.newContext({ viewport: { width: 1440, height: 900 }, reducedMotion: "reduce", ...options });
    p.context.setDefaultTimeout(patience);
    p.page = await p.context.newPage();
    p.errors = [];
    p.elsewhere = [];
    p.page.on("console", (m) => m.type() === "error" && p.errors.push(m.text()));
    p.page.on("pageerror", (e) => p.errors.push(String(e)));
    p.context.on("request", (r) => r.url().startsWith(server.url) || p.elsewhere.push(r.url()));
    await p.page.goto(server.url + hash);
    return p;
  }

  $(selector, options) {
    return this.page.locator(selector, options);
  }

  text(selector) {
    return this.$(selector).textContent();
  }

  async number(selector) {
    return Number((await this.text(selector)).replaceAll(",", ""));
  }

  received() {
    return this.number("#received");
  }

  state(text) {
    return until(`the state is ${text}`, async () => (await this.text("#state-text")).startsWith(text));
  }

  // more waits until so many events have come in all.
  more(n) {
    return until(`${n} events have come`, async () => (await this.received()) >= n);
  }

  // rows returns what the list shows, the newest first.
  rows() {
    return this.$("#rows .row").evaluateAll((all) => all.map((r) => ({
      what: r.dataset.what, collection: r.querySelector(".collection").textContent, who: r.querySelector(".who").title, text: r.textContent,
    })));
  }

  // all clears the list until it shows rows, and only such as ok says: what was on its way when
  // the filter changed may still come.
  all(what, ok) {
    return until(what, async () => {
      await this.$("#clear").click();
      await until("there are rows", async () => (await this.rows()).length > 0);
      return (await this.rows()).every(ok);
    });
  }

  // copied presses a button that copies, and returns what the clipboard then has. There is one
  // clipboard for all.
  copied(button) {
    const result = clipboard.then(async () => {
      await this.$(button).click();
      await until("it is copied", async () => (await this.text(button)) === "Copied");
      return this.page.evaluate(() => (navigator.clipboard ?? globalThis.clipboard).readText());
    });
    clipboard = result.catch(() => {});
    return result;
  }

  // close ends the test of the page: nothing may have gone wrong but what is expected.
  async close(expected = /^$/) {
    assert.deepEqual(this.errors.filter((e) => !expected.test(e)), [], "the console has errors");
    assert.deepEqual(this.elsewhere, [], "requests went elsewhere");
    await this.context.close();
  }
}
