#!/usr/bin/env node
// An EventSource, as browsers have it: it resumes by itself.
import { EventSource } from "eventsource";
import { order, print } from "./order.mjs";

const source = new EventSource(order.url.replace("ws", "http"));
source.onmessage = ({ data, lastEventId }) => {
	const event = JSON.parse(data);
	if (lastEventId !== String(event.time_us)) throw new Error("the id is " + lastEventId);
	print(event);
};
source.onerror = (error) => console.error("error:", error.code, error.message);
