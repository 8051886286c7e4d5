// Numbers as people read them.

export function count(n: number): string {
  return Math.round(n).toLocaleString("en-US");
}

// rate keeps two digits that say something.
export function rate(n: number): string {
  if (n >= 10) return count(n);
  if (n >= 0.995) return n.toFixed(1);
  return n > 0 ? n.toFixed(2) : "0";
}

export function bytes(n: number): string {
  const units = ["B", "KB", "MB", "GB", "TB", "PB"];
  let i = 0;
  while (n >= 999.5 && i < units.length - 1) {
    n /= 1000;
    i++;
  }
  return `${n >= 9.95 || i === 0 ? Math.round(n) : n.toFixed(1)} ${units[i]}`;
}

export function duration(seconds: number): string {
  if (seconds < 1) return `${Math.round(seconds * 1000)} ms`;
  if (seconds < 10) return `${seconds.toFixed(1)} s`;
  const s = Math.round(seconds);
  if (s < 120) return `${s} s`;
  const m = Math.floor(s / 60);
  if (m < 120) return `${m} min`;
  const h = Math.floor(m / 60);
  if (h < 48) return m % 60 > 0 ? `${h} h ${m % 60} min` : `${h} h`;
  return `${Math.floor(h / 24)} d ${h % 24} h`;
}

const pad = (n: number, width: number) => String(n).padStart(width, "0");

// clock is the local time of a time_us, to the millisecond.
export function clock(timeUs: number): string {
  const t = new Date(timeUs / 1000);
  return `${pad(t.getHours(), 2)}:${pad(t.getMinutes(), 2)}:${pad(t.getSeconds(), 2)}.${pad(t.getMilliseconds(), 3)}`;
}

// shortDID leaves of a did:plc what tells it from others.
export function shortDID(did: string): string {
  return /^did:plc:.{24}$/.test(did) ? `${did.slice(0, 14)}…${did.slice(-4)}` : did;
}
