#!/usr/bin/env node
// Plain ws, as in a bot without a client library. It offers permessage-deflate, as ws does.
import { createDCtx, decompressUsingDict, init } from "@bokuweb/zstd-wasm";
import WebSocket from "ws";
import { order, print, updater } from "./order.mjs";

await init();
const decompressor = createDCtx();
let last;

function connect() {
	const url = new URL(order.url);
	if (last !== undefined) url.searchParams.set("cursor", last);
	const ws = new WebSocket(url, { headers: order.headers });
	let dictionary;
	ws.on("upgrade", ({ headers }) => {
		const id = headers["zstd-dictionary-id"];
		if (id) dictionary = fetch(order.endpoint.replace("ws", "http") + "/dictionary/" + id)
			.then((response) => response.arrayBuffer()).then((bytes) => new Uint8Array(bytes));
	});
	ws.on("open", () => {
		if (ws.extensions !== "") throw new Error("extensions: " + ws.extensions);
	});
	const received = updater(({ collections, dids }) => ws.send(JSON.stringify(
		{ type: "options_update", payload: { wantedCollections: collections, wantedDids: dids } })));
	let queue = Promise.resolve();
	ws.on("message", (data, binary) => {
		if (binary !== order.compress) throw new Error("compressed: " + binary);
		queue = queue.then(async () => {
			const text = binary ? Buffer.from(decompressUsingDict(decompressor, data, await dictionary)) : data;
			const event = JSON.parse(text.toString());
			last = event.time_us ?? event.payload.seq;
			print(event);
			received();
		});
	});
	ws.on("error", (error) => console.error("error:", error.message));
	ws.on("close", (code, reason) => {
		console.error("closed:", code, reason.toString());
		setTimeout(connect, 200);
	});
}
connect();
