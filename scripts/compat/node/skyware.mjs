#!/usr/bin/env node
import { Jetstream } from "@skyware/jetstream";
import WebSocket from "ws";
import { order, print, updater } from "./order.mjs";

const jetstream = new Jetstream({
	ws: WebSocket,
	endpoint: order.endpoint + "/subscribe",
	cursor: order.cursor,
	wantedCollections: order.collections,
	wantedDids: order.dids,
});
const received = updater(({ collections, dids }) =>
	jetstream.updateOptions({ wantedCollections: collections, wantedDids: dids }));
for (const kind of ["commit", "identity", "account"]) {
	jetstream.on(kind, (event) => {
		print(event);
		received();
	});
}
jetstream.on("error", (error) => console.error("error:", error));
jetstream.on("close", () => console.error("closed"));
jetstream.start();
