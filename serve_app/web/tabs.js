// Two tabs, as the ARIA practices describe them: arrow keys move, the address remembers.

import { $ } from "./dom.js";

const NAMES = ["classify", "live"];
const listeners = new Set();
let current = null;

/** Calls back with the name of the tab that is shown, now and after each change. */
export function onTab(callback) {
  listeners.add(callback);
  if (current) callback(current);
}

function select(name) {
  current = name;
  for (const one of NAMES) {
    const here = one === name;
    $(`tab-${one}`).setAttribute("aria-selected", String(here));
    $(`tab-${one}`).tabIndex = here ? 0 : -1;
    $(`panel-${one}`).hidden = !here;
  }
  for (const listener of listeners) listener(name);
}

function go(name) {
  history.replaceState(null, "", name === NAMES[0] ? location.pathname + location.search : `#${name}`);
  select(name);
}

const fromAddress = () => NAMES.find((name) => location.hash === `#${name}`) ?? NAMES[0];

for (const [i, name] of NAMES.entries()) {
  $(`tab-${name}`).addEventListener("click", () => go(name));
  $(`tab-${name}`).addEventListener("keydown", (event) => {
    const to = { ArrowRight: i + 1, ArrowLeft: i - 1, Home: 0, End: -1 }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    const other = NAMES.at(to % NAMES.length);
    go(other);
    $(`tab-${other}`).focus();
  });
}
addEventListener("hashchange", () => select(fromAddress()));
select(fromAddress());
