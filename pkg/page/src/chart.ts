// Events per second by collection: areas on top of each other, the last five minutes.

import uPlot from "uplot";

export interface Sample {
  at: number; // unix seconds
  all: number;
  by: Map<string, number>;
}

export const maxSamples = 150;
const shownNames = 5;

// Legend is what the chart shows, the busiest first; "" stands for all others.
export type Legend = { name: string; color: string; rate: number }[];

const css = (name: string) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

export class Chart {
  private samples: Sample[] = [];
  private plot: uPlot | null = null;
  private names: string[] = []; // of the series, the lowest first

  constructor(private readonly parent: HTMLElement) {
    new ResizeObserver(() => this.plot?.setSize(this.size())).observe(parent);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.rebuild());
  }

  // reset begins anew with what was before.
  reset(samples: Sample[]) {
    this.samples = samples.slice(-maxSamples);
    return this.draw();
  }

  add(s: Sample) {
    this.samples.push(s);
    if (this.samples.length > maxSamples) this.samples.shift();
    return this.draw();
  }

  private draw(): Legend {
    const sums = new Map<string, number>();
    for (const s of this.samples) for (const [name, rate] of s.by) sums.set(name, (sums.get(name) ?? 0) + rate);
    const busiest = [...sums].sort((a, b) => b[1] - a[1]).slice(0, shownNames).map(([name]) => name);
    const names = [...busiest, ""];
    if (names.join() !== this.names.join()) {
      this.names = names;
      this.rebuild();
    } else {
      this.plot?.setData(this.data());
    }
    const last = this.samples.at(-1);
    return names.map((name, i) => ({ name, color: `var(--series-${name === "" ? "rest" : i + 1})`, rate: last === undefined ? 0 : this.of(last, name) }));
  }

  private of(s: Sample, name: string): number {
    if (name !== "") return s.by.get(name) ?? 0;
    let rest = s.all;
    for (const n of this.names) if (n !== "") rest -= s.by.get(n) ?? 0;
    return Math.max(0, rest);
  }

  // data has the highest area first, so that each is painted over by the next lower one.
  private data(): uPlot.AlignedData {
    const columns: number[][] = this.names.map(() => []);
    for (const s of this.samples) {
      let sum = 0;
      for (const [i, name] of this.names.entries()) columns[i]!.push((sum += this.of(s, name)));
    }
    return [this.samples.map((s) => s.at), ...columns.reverse()];
  }

  private size() {
    return { width: Math.max(200, this.parent.clientWidth), height: Math.max(120, this.parent.clientHeight) };
  }

  // span is how many seconds there are to see: five minutes, or since the start, but a minute.
  private span(): number {
    return Math.max(60, (this.samples.at(-1)?.at ?? 0) - (this.samples[0]?.at ?? 0));
  }

  private rebuild() {
    this.plot?.destroy();
    const muted = css("--muted");
    const axis: uPlot.Axis = {
      stroke: muted, font: `11px ${css("--sans")}`, ticks: { show: false },
      grid: { stroke: css("--line"), width: 1 },
    };
    this.plot = new uPlot(
      {
        ...this.size(),
        padding: [6, 4, 0, 0],
        cursor: { show: false },
        legend: { show: false },
        scales: { x: { range: (_u, _min, max) => [max - this.span(), max] }, y: { range: (_u, _min, max) => [0, Math.max(1, max * 1.08)] } },
        axes: [
          { ...axis, size: 24, space: 80, grid: { show: false }, values: (_u, at) => at.map((t) => new Date(t * 1000).toTimeString().slice(0, 5)), incrs: [60, 120, 300] },
          { ...axis, size: 44, space: 34, values: (_u, at) => at.map((v) => (v >= 1000 ? `${v / 1000}k` : String(v))) },
        ],
        series: [
          {},
          ...this.names.map((name, i) => {
            const color = css(`--series-${name === "" ? "rest" : i + 1}`);
            return { stroke: color, fill: color, width: 0, points: { show: false } };
          }).reverse(),
        ],
      },
      this.data(),
      this.parent,
    );
  }
}
