// Numbers as people read them, in the language of the page.

import { language } from "./language.js";

const NONE = "–";
const GAP = "\u00a0"; // keeps a unit on the line of its number
const made = new Map();

function format(value, options) {
  const key = language() + JSON.stringify(options);
  if (!made.has(key)) made.set(key, new Intl.NumberFormat(language(), options));
  return made.get(key).format(value);
}

const known = (value) => typeof value === "number" && Number.isFinite(value);

/** 1234567 -> "1.2 MB"; what is not a number is a dash, here and below. */
export function bytes(n) {
  if (!known(n)) return NONE;
  if (n < 1e3) return `${format(n, {})}${GAP}B`;
  if (n < 1e6) return `${format(n / 1e3, { maximumFractionDigits: 0 })}${GAP}kB`;
  return `${format(n / 1e6, { maximumFractionDigits: 1 })}${GAP}MB`;
}

/** Milliseconds: "3.2 ms", "143 ms", "2.43 s". */
export function ms(value) {
  if (!known(value)) return NONE;
  if (Math.abs(value) >= 1e3) return `${format(value / 1e3, { maximumFractionDigits: 2 })}${GAP}s`;
  const digits = Math.abs(value) < 10 ? 1 : 0;
  return `${format(value, { minimumFractionDigits: digits, maximumFractionDigits: digits })}${GAP}ms`;
}

/** A probability: "37.2%", "< 0.1%". */
export function percent(share, digits = 1) {
  if (!known(share)) return NONE;
  const options = { style: "percent", minimumFractionDigits: digits, maximumFractionDigits: digits };
  const least = 10 ** -(digits + 2);
  return share > 0 && share < least ? `< ${format(least, options)}` : format(share, options);
}

/** A rate or a mean: one decimal below 100. */
export function decimal(value) {
  if (!known(value)) return NONE;
  const digits = Math.abs(value) < 100 ? 1 : 0;
  return format(value, { minimumFractionDigits: digits, maximumFractionDigits: digits });
}

/** A count. */
export function whole(value) {
  return known(value) ? format(value, { maximumFractionDigits: 0 }) : NONE;
}
