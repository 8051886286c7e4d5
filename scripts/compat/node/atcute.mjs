#!/usr/bin/env node
import { JetstreamSubscription } from "@atcute/jetstream";
import WebSocket from "ws";
import { order, print, updater } from "./order.mjs";

const subscription = new JetstreamSubscription({
	url: order.endpoint,
	cursor: order.cursor || undefined, // now
	wantedCollections: order.collections,
	wantedDids: order.dids,
	ws: { WebSocket },
	onError: (error) => console.error("invalid:", error.message),
	onConnectionError: (event) => console.error("error:", event.message),
	onConnectionClose: (event) => console.error("closed:", event.code, event.reason),
});
const received = updater(({ collections, dids }) =>
	subscription.updateOptions({ wantedCollections: collections, wantedDids: dids }));
for await (const event of subscription) {
	print(event);
	received();
}
