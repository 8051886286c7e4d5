// What each of these clients is told, and how it tells what it received.

export const order = JSON.parse(process.argv[2]);

export function print(event) {
	process.stdout.write(JSON.stringify(event) + "\n");
}

// updater returns a function to call after each event; it calls update when it is time.
export function updater(update) {
	let events = 0;
	return () => {
		if (order.update && ++events === order.update.after) update(order.update);
	};
}
