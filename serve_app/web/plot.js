// Small plots of the last minutes, in SVG, each with its figures in words for those who do not see it.

import { drawn, element } from "./dom.js";
import { t } from "./language.js";

const [WIDTH, HEIGHT] = [300, 72];

/**
 * A plot over time.
 *
 * Args: `label` (what is plotted), `series` ([{ name, key, points: [[time_s, value or null], ...] }], null leaves a gap),
 * `fromS` and `toS` (its time axis), `show` (a value in words), `steps` (hold a value until the next).
 * `key` chooses the colour and stroke, see the style sheet.
 */
export function plot({ label, series, fromS, toS, show, steps = false }) {
  const most = Math.max(0, ...series.flatMap(({ points }) => points.map(([, value]) => value ?? 0)));
  const top = niceTop(1.1 * most);
  const x = (time) => ((time - fromS) / (toS - fromS)) * WIDTH;
  const y = (value) => HEIGHT - 1 - (value / top) * (HEIGHT - 3);
  const lines = series.map(({ key, points }) => drawn("path", { class: `line-${key}`, d: path(points, x, y, steps) }));
  const grid = [0, 0.5, 1].map((share) => drawn("path", { class: "grid", d: `M0 ${y(share * top)}H${WIDTH}` }));
  const frame = { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", "aria-hidden": "true" };
  const svg = drawn("svg", frame, ...grid, ...lines);
  const scale = element("span", { class: "scale", "aria-hidden": "true", text: show(top) });
  return element("div", { class: "plot", role: "img", "aria-label": `${label}: ${inWords(series, show)}` }, svg, scale);
}

/** Bars by batch size, sizes gathered in powers of two. `sizes`: {"1": batches, ...}. */
export function sizesPlot(sizes, show) {
  const bins = binned(sizes);
  const most = Math.max(...bins.map(({ count }) => count));
  return element("ul", { class: "columns" }, ...bins.map(({ label, count }) => {
    const column = element("div", { class: "column", "aria-hidden": "true" });
    column.style.height = `${(100 * count) / most}%`;
    const said = element("span", { class: "unseen", text: t("live.batches-of", { n: count, size: label }) });
    const size = element("span", { "aria-hidden": "true", text: label, title: show(count) });
    return element("li", {}, said, element("div", { class: "column-frame" }, column), size);
  }));
}

function binned(sizes) {
  const bins = [];
  for (const [size, count] of Object.entries(sizes)) {
    const power = Math.ceil(Math.log2(Number(size)));
    bins[power] = (bins[power] ?? 0) + count;
  }
  return Array.from(bins, (count, power) => {
    const [low, high] = [2 ** (power - 1) + 1, 2 ** power];
    return { label: power === 0 ? "1" : low === high ? `${high}` : `${low}–${high}`, count: count ?? 0 };
  });
}

/** Moves and lines; a null lifts the pen. */
function path(points, x, y, steps) {
  let d = "";
  let drawing = false;
  for (const [time, value] of points) {
    if (value === null) { drawing = false; continue; }
    const [px, py] = [x(time).toFixed(1), y(value).toFixed(1)];
    if (!drawing) d += `M${px} ${py}h0.01`;
    else d += steps ? `H${px}V${py}` : `L${px} ${py}`;
    drawing = true;
  }
  return d;
}

/** The next of 1, 2, 5, 10, 20 ... at or above a value. */
function niceTop(value) {
  if (value <= 0) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].find((step) => step * power >= value) * power;
}

function inWords(series, show) {
  return series.map(({ name, points }) => {
    const values = points.map(([, value]) => value).filter((value) => value !== null);
    if (!values.length) return t("plot.none", { name });
    const now = points.at(-1)[1];
    const [least, most] = [show(Math.min(...values)), show(Math.max(...values))];
    return t("plot.words", { name, now: now === null ? t("plot.unknown") : show(now), least, most });
  }).join("; ");
}
