// Prints what zstd frames hold, a line each: node decode.js DICTIONARY FRAMES, where FRAMES
// is a file of frames, each behind its length in four bytes, little end first.
const fs = require("node:fs");
const zstd = require("@bokuweb/zstd-wasm");

async function main([dictionaryFile, framesFile]) {
  await zstd.init();
  const dictionary = fs.readFileSync(dictionaryFile);
  const frames = fs.readFileSync(framesFile);
  const context = zstd.createDCtx();
  const lines = [];
  for (let at = 0; at < frames.length; ) {
    const end = at + 4 + frames.readUInt32LE(at);
    const text = zstd.decompressUsingDict(context, frames.subarray(at + 4, end), dictionary);
    lines.push(new TextDecoder("utf-8", { fatal: true }).decode(text));
    at = end;
  }
  process.stdout.write(lines.join("\n") + "\n");
}

main(process.argv.slice(2)).catch((err) => {
  console.error(err);
  process.exit(1);
});
