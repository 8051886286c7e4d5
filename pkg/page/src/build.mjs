// Builds the page into ../dist, or into the directory that is named: the same sources and
// lockfile give the same bytes everywhere.
import { build } from "esbuild";
import { createHash } from "node:crypto";
import { mkdir, readFile, rm, writeFile } from "node:fs/promises";
import path from "node:path";

const src = import.meta.dirname;
const out = path.resolve(process.argv[2] ?? path.join(src, "../dist"));
await rm(out, { recursive: true, force: true });
await mkdir(path.join(out, "assets"), { recursive: true });

// emit writes a file under a name that its contents decide, and returns that.
async function emit(name, contents) {
  const hash = createHash("sha256").update(contents).digest("hex").slice(0, 10);
  const { name: base, ext } = path.parse(name);
  const file = `${base}-${hash}${ext}`;
  await writeFile(path.join(out, "assets", file), contents);
  return file;
}

async function bundle(entry, define = {}) {
  const result = await build({
    absWorkingDir: src, entryPoints: [entry], bundle: true, minify: true, write: false, charset: "utf8",
    format: "esm", target: "es2022", legalComments: "eof", conditions: ["browser"], logLevel: "warning",
    define: Object.fromEntries(Object.entries(define).map(([k, v]) => [k, JSON.stringify(v)])),
  });
  return result.outputFiles[0].contents;
}

const wasm = await emit("zstd.wasm", await readFile(path.join(src, "node_modules/@bokuweb/zstd-wasm/dist/esm/zstd.wasm")));
const worker = await emit("worker.js", await bundle("worker.ts", { wasmFile: wasm }));
const names = {
  "main.js": await emit("main.js", await bundle("main.ts", { workerFile: `./${worker}` })),
  "main.css": await emit("main.css", await bundle("main.css")),
  "icon.svg": await emit("icon.svg", await readFile(path.join(src, "icon.svg"))),
};
let html = await readFile(path.join(src, "index.html"), "utf8");
for (const [name, file] of Object.entries(names)) html = html.replaceAll(`assets/${name}`, `/assets/${file}`);
await writeFile(path.join(out, "index.html"), html);
