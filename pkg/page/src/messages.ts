import type { Filter, Wanted } from "./protocol";

// What the page tells its worker.
export type Order = { type: "open"; id: number; wanted: Wanted } | { type: "filter"; filter: Filter } | { type: "compress"; zstd: boolean };

export type State = "connecting" | "open" | "waiting" | "refused";

// A row of the list: a message as it came, and what identity events called its author.
export interface Row {
  json: string;
  handle: string;
}

// What the worker tells the page. id is that of the last open.
export type Report =
  | { type: "state"; id: number; state: State; why: string; wire: string; retryMs: number }
  | {
      type: "batch";
      id: number;
      events: number; // all that came
      rows: Row[]; // the newest of them
      wireBytes: number; // of their messages
      jsonBytes: number; // of their JSON
      seen: string[]; // collections that had not been seen before
    };
