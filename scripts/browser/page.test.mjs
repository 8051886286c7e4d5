// The page, as people use it. See harness.mjs.
import assert from "node:assert/strict";
import { execFile, spawn } from "node:child_process";
import { mkdir, mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { createRequire } from "node:module";
import path from "node:path";
import { after, before, describe, test } from "node:test";
import { promisify } from "node:util";
import { launch, Page, patience, root, Server, sleep, until } from "./harness.mjs";

const run = promisify(execFile);
const shots = path.join(root, "bin/browser");
const phone = { viewport: { width: 360, height: 780 }, isMobile: true, hasTouch: true };

const axe = await readFile(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");

let chrome, browser, server;

// Tests wait more than they work, so that several go on at a time; what looks at the counters of
// a server has one of its own.
const tests = { concurrency: 3 };

describe("the page", tests, () => {
  before(async () => {
    await mkdir(shots, { recursive: true });
    server = await Server.start("--rate", "150");
    chrome = await launch();
    browser = chrome.browser;
  });
  after(async () => {
    await chrome?.close();
    await server?.stop();
  });

  const isCommitOf = (name) => (r) => r.what === "identity" || r.what === "account" || r.collection === name;

  test("it loads, and shows events and vitals", async () => {
    const p = await Page.open(browser, server);
    await p.state("Live · v1");
    await p.more(100);
    const rows = await p.rows();
    assert.ok(rows.length > 0 && rows.every((r) => /^did:/.test(r.who)), JSON.stringify(rows[0]));
    await until("there are vitals", async () => Number(await p.text("#rate")) > 0);
    assert.equal(await p.text("#version"), (await server.status()).version);
    for (const id of ["consumers", "lag", "replay", "uptime"]) assert.notEqual(await p.text(`#${id}`), "–", id);
    assert.equal(await p.$("#chart canvas").count(), 1);
    await until("the legend names collections", async () => (await p.$("#legend button").count()) >= 3);
    // The chart moves.
    const picture = () => p.$("#chart canvas").evaluate((c) => c.toDataURL());
    const before = await picture();
    await until("the chart moves", async () => (await picture()) !== before);
    await p.close();
  });

  for (const [name, options] of Object.entries({
    "1440-light": { colorScheme: "light" },
    "1440-dark": { colorScheme: "dark" },
    "360-light": { colorScheme: "light", ...phone },
    "360-dark": { colorScheme: "dark", ...phone },
  })) {
    test(`everyone can use it, and it fits: ${name}`, async () => {
      const p = await Page.open(browser, server, options, "#collection=app.bsky.feed.post&collection=app.bsky.graph.*");
      await p.more(60);
      await until("there are vitals", async () => (await p.$("#legend button").count()) >= 3);
      const fits = async (what) => {
        const wide = await p.page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
        assert.ok(wide <= 0, `${name}, ${what}: ${wide} pixels wider than the window`);
        const overlapping = await p.page.evaluate(() => {
          const parts = [...document.querySelectorAll("#filter input[type=number], #filter select, #filter .box, #filter .pills, .code, .figures > div, .flow > *")]
            .map((e) => [e, e.getBoundingClientRect()]).filter(([, r]) => r.width > 0);
          return parts.flatMap(([a, r], i) => parts.slice(i + 1)
            .filter(([, s]) => r.left < s.right - 1 && s.left < r.right - 1 && r.top < s.bottom - 1 && s.top < r.bottom - 1)
            .map(([b]) => `${a.id || a.className} and ${b.id || b.className}`));
        });
        assert.deepEqual(overlapping, [], `${name}, ${what}: what overlaps`);
      };
      const check = async (what) => {
        await p.page.evaluate(axe);
        const { violations } = await p.page.evaluate(() => axe.run(document, { resultTypes: ["violations"] }));
        assert.deepEqual(violations.map((v) => `${v.id}: ${v.help}: ${v.nodes.map((n) => n.target).join(", ")}`), [], `${name}, ${what}`);
        await fits(what);
      };
      await p.page.screenshot({ path: path.join(shots, `${name}.png`) });
      await p.$("#pause").click();
      await p.$("#zstd").click();
      await p.$("#collections input").click();
      await p.$("#collections [role=option]").first().waitFor();
      await check("the page, with completion");
      await p.page.keyboard.press("Escape");
      await p.$("#rows .row").first().click();
      await p.$("#detail").waitFor({ state: "visible" });
      await p.page.screenshot({ path: path.join(shots, `${name}-detail.png`) });
      await check("an event");
      await p.$("#detail-close").click();
      for (const width of [320, 768, 901, 1024, 1181, 1440, 2200]) {
        await p.page.setViewportSize({ width, height: 800 });
        await fits(`${width} pixels`);
      }
      await p.close();
    });
  }

  test("a filter of collections goes to the open connection, with completion", async (t) => {
    const own = await Server.start("--rate", "150");
    t.after(() => own.stop());
    const p = await Page.open(browser, own);
    await p.more(50);
    const connected = await own.metric("slipstream_subscribes_total");
    await p.$("#collections input").click();
    await p.$("#collections input").pressSequentially("feed.repost");
    await until("repost is suggested", async () => (await p.$("#collections [role=option]").allTextContents()).some((t) => t.startsWith("app.bsky.feed.repost")));
    await p.page.keyboard.press("ArrowDown");
    assert.equal(await p.$("#collections [aria-selected=true] bdi").textContent(), "app.bsky.feed.repost");
    await p.page.keyboard.press("Enter");
    assert.deepEqual(await p.$("#collections .chips bdi").allTextContents(), ["app.bsky.feed.repost"]);
    await p.all("only reposts come", isCommitOf("app.bsky.feed.repost"));

    // Another one, and a prefix, typed.
    await p.$("#collections input").fill("app.bsky.graph.*");
    await p.page.keyboard.press("Enter");
    await p.all("reposts and the graph come", (r) => r.what === "identity" || r.what === "account" || /^app\.bsky\.(feed\.repost|graph\.[a-z]+)$/.test(r.collection));
    await until("both come", async () => {
      const seen = new Set((await p.rows()).map((r) => r.collection));
      return seen.has("app.bsky.feed.repost") && seen.has("app.bsky.graph.follow");
    });

    // What is no collection is refused here, in a sentence.
    await p.$("#collections input").fill("feed!");
    await p.page.keyboard.press("Enter");
    assert.match(await p.text("#collections .problem"), /feed! is neither a collection/);
    await p.$("#collections input").fill("");

    // One repo.
    const did = (await p.rows()).at(0).who;
    await p.$("#dids input").fill(`at://${did}/app.bsky.feed.post/3k`);
    await p.page.keyboard.press("Enter");
    assert.deepEqual(await p.$("#dids .chips bdi").allTextContents(), [did]);
    await p.$("#dids .chips button").click();

    // The largest event.
    await p.$("#size").fill("1");
    await p.page.keyboard.press("Enter");
    await until("nothing more comes", async () => {
      const n = await p.received();
      const taken = (await own.status()).events.total;
      await until("the network goes on", async () => (await own.status()).events.total > taken + 50);
      return (await p.received()) === n;
    });
    await p.$("#reset").click();
    await p.more((await p.received()) + 20);
    assert.equal(await own.metric("slipstream_subscribes_total"), connected, "a filter was changed by connecting anew");
    await p.close();
  });

  test("kinds take the v2 protocol", async () => {
    const p = await Page.open(browser, server);
    await p.more(20);
    await p.$("#kinds label", { hasText: "commit" }).first().click();
    await p.state("Live · v2");
    await p.all("identity and account events come", (r) => r.what === "identity" || r.what === "account");
    assert.match(await p.text("#hint"), /v2 protocol/);
    assert.match(await p.text("#snippet"), /subscribeEvents\?kinds=identity&kinds=account"/);
    await p.$("#kinds input[value=identity]").focus();
    await p.page.keyboard.press("Space");
    await p.$("#kinds input[value=account]").focus();
    await p.page.keyboard.press("Space");
    assert.equal(await p.text("#hint"), "Choose at least one kind.");
    await p.$("#kinds input[value=sync]").focus();
    await p.page.keyboard.press("Space");
    await p.all("sync events come", (r) => r.what === "sync");
    // What the server refuses is said as it says it.
    await p.$("#size").fill("99999999999");
    await p.page.keyboard.press("Enter");
    await p.state("Refused");
    assert.match(await p.text("#empty"), /^Refused: maxMessageSizeBytes: /);
    await p.$("#reset").click();
    await p.state("Live · v1");
    await p.more(20);
    await p.close(/400|WebSocket/);
  });

  test("the address keeps the filter, and nothing that is none", async () => {
    const p = await Page.open(browser, server, {}, "#collection=app.bsky.feed.like&collection=%22%3E%3Cimg%20src%3Dx%3E%24(id)&did=did:plc:%60id%60&maxBytes=1e9&kinds=commit");
    await p.state("Live · v2");
    assert.deepEqual(await p.$("#collections .chips bdi").allTextContents(), ["app.bsky.feed.like"]);
    await p.all("only likes come", isCommitOf("app.bsky.feed.like"));
    assert.equal(await p.$("img").count(), 0);
    assert.doesNotMatch(await p.text("#snippet"), /[$`<]/);
    await p.page.reload();
    await p.state("Live · v2");
    assert.deepEqual(await p.$("#collections .chips bdi").allTextContents(), ["app.bsky.feed.like"]);
    await p.close();
  });

  test("pause, clear, an event's JSON, and copies of it", async () => {
    const p = await Page.open(browser, server, { permissions: ["clipboard-read", "clipboard-write"] });
    await p.more(100);
    await p.$("#pause").click();
    assert.equal(await p.text("#pause"), "Resume");
    const still = await p.rows();
    await until("what comes is counted", async () => /Paused · ([1-9]\d\d|[\d,]{5,}) more since/.test(await p.text("#held")));
    assert.deepEqual(await p.rows(), still);

    // The third row, by mouse.
    await p.$("#rows .row").nth(2).click();
    await p.$("#detail").waitFor({ state: "visible" });
    const shown = JSON.parse(await p.text("#json"));
    assert.equal(shown.did, still[2].who);
    if (shown.kind === "commit") assert.equal(shown.commit.collection, still[2].collection);
    assert.deepEqual(JSON.parse(await p.copied("#detail-copy")), shown);
    await p.page.keyboard.press("Escape");
    await p.$("#detail").waitFor({ state: "hidden" });

    // The next one, by keyboard.
    await p.$("#rows .row").nth(2).focus();
    await p.page.keyboard.press("ArrowDown");
    await p.page.keyboard.press("Enter");
    await p.$("#detail").waitFor({ state: "visible" });
    assert.equal(JSON.parse(await p.text("#json")).did, still[3].who);
    await p.page.keyboard.press("Escape");
    assert.equal(await p.page.evaluate(() => document.activeElement.closest("li") === document.querySelectorAll("#rows li")[3]), true, "the focus has gone back");

    // From an event to its repo.
    await p.page.keyboard.press("Enter");
    await p.$("#detail-actions button", { hasText: "Only this repo" }).click();
    assert.deepEqual(await p.$("#dids .chips bdi").allTextContents(), [still[3].who]);
    await p.$("#detail-close").click();
    await p.$("#reset").click();

    await p.$("#pause").click();
    await until("the list moves", async () => (await p.rows())[0]?.text !== still[0].text);
    await p.$("#pause").click();
    await p.$("#clear").click();
    assert.equal((await p.rows()).length, 0);

    // Where the page is not served by TLS, the clipboard is closed to it.
    await p.page.evaluate(() => {
      globalThis.clipboard = navigator.clipboard;
      Object.defineProperty(navigator, "clipboard", { value: undefined });
    });
    assert.equal(await p.copied("#copy-snippet"), await p.text("#snippet"));
    await p.close();
  });

  test("what the network says is text", async () => {
    const p = await Page.open(browser, server, { permissions: ["clipboard-read", "clipboard-write"] });
    const evil = '<img src=x onerror="document.title=1"><script>document.title=2</script>';
    const json = JSON.stringify({
      did: `did:web:${evil}`, time_us: 1795511748984691, kind: "commit",
      commit: { rev: evil, operation: evil, collection: evil, rkey: evil, record: { text: evil, [evil]: [1, { "\u0000": null }], number: 0, more: "x".repeat(200_000) } },
    }).replace('"number":0', '"number":9007199254740993');
    // The relay says no such thing, so that here the page is told by another worker.
    await p.page.route("**/assets/worker-*.js", (r) => r.fulfill({
      contentType: "text/javascript",
      body: `onmessage = (m) => postMessage({ type: "batch", id: m.data.id, events: 1, rows: [${JSON.stringify({ json, handle: evil })}], wireBytes: 1, jsonBytes: 1, seen: [${JSON.stringify(evil)}] })`,
    }));
    await p.page.reload();
    await p.$("#rows .row").click();
    await p.$("#detail").waitFor({ state: "visible" });
    assert.equal(await p.text("#rows .who"), `@${evil}`);
    assert.equal(await p.text("#rows .about"), evil);
    const shown = await p.text("#json");
    assert.ok(shown.includes(JSON.stringify(evil)) && shown.includes("9007199254740993"), shown.slice(0, 2000));
    assert.ok(shown.length < 150_000);
    assert.equal(await p.copied("#detail-copy"), json);
    await p.$("#collections input").fill("img");
    assert.ok((await p.$("#collections [role=option]").allTextContents()).some((t) => t.startsWith(evil)));
    assert.equal(await p.$("img, main script").count(), 0);
    assert.equal(await p.page.title(), "Slipstream");
    await p.close();
  });

  test("zstd takes a fraction of the bytes, and brings the same", async () => {
    const p = await Page.open(browser, server);
    await p.more(100);
    assert.match(await p.text("#meter-text"), /uncompressed$/);
    const saved = (await server.status()).consumers.saved.total;
    await p.$("#zstd").click();
    assert.equal(await p.$("#zstd").getAttribute("aria-checked"), "true");
    await p.state("Live");
    const share = await until("the meter says what is saved", async () => Number(/(\d+) % less/.exec(await p.text("#meter-text"))?.[1] ?? 0));
    await until("it is a half at least", async () => Number(/(\d+) % less/.exec(await p.text("#meter-text"))?.[1]) >= 50).catch(() => assert.fail(`${share} % less`));
    await p.all("events come", (r) => /^did:/.test(r.who));
    await until("the server says so too", async () => (await server.status()).consumers.saved.total > saved);
    // On the other protocol as well.
    await p.$("#kinds label", { hasText: "account" }).click();
    await p.state("Live · v2");
    await p.all("no account events come", (r) => r.what !== "account" && /^did:/.test(r.who));
    await p.close();
  });

  test("it comes back after a restart of the daemon, and misses nothing", async (t) => {
    const own = await Server.start("--rate", "150", "--total", "2400", "--first-seq", "1");
    t.after(() => own.stop());
    const p = await Page.open(browser, own, {}, "#cursor=1&zstd=1");
    await p.more(500);
    await own.daemon.end();
    await p.state("Connecting again");
    await own.startDaemon();
    await p.state("Live · v1");
    await until("everything has been taken in", async () => (await own.metric("slipstream_upstream_seq")) === 2400);
    // What the last frame brought is committed in a moment.
    let last = 0;
    await until("the last event is there", async () => {
      const before = last;
      last = await own.metric("slipstream_last_cursor");
      await sleep(1000);
      return last === before;
    });
    const events = await p.page.evaluate((last) => new Promise((done) => {
      let n = 0;
      const socket = new WebSocket(`ws://${location.host}/subscribe?cursor=1`);
      socket.onmessage = (m) => {
        n++;
        if (JSON.parse(m.data).time_us === last) done(n);
      };
    }), last);
    await until(`the page has all ${events} events, is at ${await p.received()}`, async () => (await p.received()) === events);
    await p.close(/ERR_CONNECTION_REFUSED|ERR_CONNECTION_RESET|ERR_EMPTY_RESPONSE|WebSocket|Failed to load resource/);
  });

  test("the snippets work", async () => {
    const p = await Page.open(browser, server, {}, "#collection=app.bsky.feed.post&minutes=2");
    await p.state("Live");
    const snippets = {};
    for (const tab of ["websocat", "curl", "javascript", "python", "go"]) {
      await p.$(`#tab-${tab}`).click();
      snippets[tab] = await p.text("#snippet");
      assert.match(snippets[tab], /wantedCollections|WantedCollections|Collections/, tab);
    }
    assert.match(snippets.websocat, /^websocat "ws:\/\/127\.0\.0\.1:\d+\/subscribe\?wantedCollections=app\.bsky\.feed\.post&cursor=\$\(\(\$\(date \+%s\) - 120\)\)000000"$/);

    // JavaScript, here.
    const said = await p.page.evaluate((code) => new Promise((done) => {
      const log = console.log;
      console.log = (...what) => {
        console.log = log;
        done(what);
      };
      eval?.(code);
    }), snippets.javascript).catch((e) => e);
    // The page's own policy forbids eval, which is as it should be: then by the debugger, which may.
    assert.match(String(said), /EvalError|unsafe-eval|did:/);
    const line = p.page.waitForEvent("console", { timeout: patience });
    await p.page.evaluate(`{ ${snippets.javascript} }`);
    assert.match((await line).text(), /did:(plc|web):.* (commit|identity|account)/);

    // curl, in a shell.
    const first = await new Promise((done, fail) => {
      const child = spawn("sh", ["-c", `exec ${snippets.curl}`], { stdio: ["ignore", "pipe", "ignore"] });
      let text = "";
      child.stdout.on("data", (b) => {
        text += b;
        const i = text.indexOf("\n");
        if (i < 0) return;
        child.kill();
        done(text.slice(0, i));
      });
      child.on("exit", () => fail(new Error(`curl ended: ${text}`)));
    });
    assert.match(JSON.parse(first).did, /^did:/);

    // Go, as a program of this module, in all its forms.
    const dir = await mkdtemp(path.join(root, "bin/snippet-"));
    try {
      const check = async (code) => {
        await writeFile(path.join(dir, "main.go"), code + "\n");
        await run("go", ["vet", "./" + path.relative(root, dir)], { cwd: root });
        assert.equal((await run("gofmt", ["-d", dir])).stdout, "");
      };
      await check(snippets.go);
      await p.$("#tab-go").click();
      await p.$("#zstd").click();
      await p.$("#size").fill("5000");
      await p.$("#kinds label", { hasText: "sync" }).click();
      await p.$("#dids input").fill("did:web:example.com");
      await p.page.keyboard.press("Enter");
      await p.$("#start").selectOption("cursor");
      await check(await p.text("#snippet"));
    } finally {
      await rm(dir, { recursive: true });
    }

    // Python, as far as it goes without what it imports.
    await run("python3", ["-c", "import ast, sys; ast.parse(sys.argv[1])", snippets.python]).catch((e) => {
      if (e.code !== "ENOENT") throw e;
    });
    await p.close();
  });

  test("thousands of events a second do not freeze it", async (t) => {
    const own = await Server.start("--loop", "2000", "--rate", "4000");
    t.after(() => own.stop());
    const p = await Page.open(browser, own);
    await p.more(5000);
    await p.page.evaluate(() => {
      globalThis.frames = 0;
      const frame = () => {
        globalThis.frames++;
        requestAnimationFrame(frame);
      };
      requestAnimationFrame(frame);
    });
    await p.more(20_000);
    // Counted, not timed: between so many events the page was drawn again and again.
    const frames = await p.page.evaluate(() => globalThis.frames);
    assert.ok(frames >= 5, `${frames} frames`);
    assert.ok((await p.$("#rows li").count()) <= 150);
    assert.ok((await p.number("#skipped")) > 15_000);
    await p.$("#pause").click();
    assert.equal(await p.text("#pause"), "Resume");
    await p.$("#rows .row").first().click();
    await p.$("#detail").waitFor({ state: "visible" });
    // The whole buffer at once, which is faster still.
    await p.$("#detail-close").click();
    await p.$("#pause").click();
    await p.$("#start").selectOption("minutes");
    await p.more(20_000);
    await p.$("#clear").click();
    await p.close();
  });
});
