// What GET /live said over the last two minutes, as series for plots. A poll without an answer is a gap.

const KEPT_S = 120;
const LEAST_S = 30;

export class History {
  constructor() {
    this.polls = []; // [{ atS, live }], live null where there was no answer
  }

  add(atS, live) {
    this.polls.push({ atS, live });
    while (this.polls[0].atS < atS - KEPT_S) this.polls.shift();
  }

  get fromS() { return Math.min(this.polls[0].atS, this.toS - LEAST_S); }

  get toS() { return this.polls.at(-1).atS; }

  /** [[time_s, value or null], ...] of a figure; `read` takes it out of an answer. A pause in polling is a gap as well. */
  series(read) {
    const points = [];
    let before = null;
    for (const { atS, live } of this.polls) {
      if (before !== null && atS - before > 5) points.push([before + 1, null]);
      const value = live && read(live);
      points.push([atS, Number.isFinite(value) ? value : null]);
      before = atS;
    }
    return points;
  }
}
