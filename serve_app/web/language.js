// The page's words in the language of the reader: chosen here and remembered, else that of the browser.

import english from "./words.en.js";
import chinese from "./words.zh.js";

const WORDS = { en: english, "zh-CN": chinese };
const REMEMBERED = "image-serve.language";
const listeners = new Set();
let code = "en";

/** The language in use, as for the attribute `lang`. */
export const language = () => code;

/**
 * The words for a key. `{name}` is replaced by values.name; of "one|many" the first is for values.n = 1.
 */
export function t(key, values = {}) {
  const forms = WORDS[code][key].split("|");
  const words = forms.length > 1 && values.n !== 1 ? forms[1] : forms[0];
  const value = (name) => (typeof values[name] === "number" ? whole(values[name]) : values[name]);
  return words.replace(/\{(\w+)\}/g, (_, name) => value(name));
}

const whole = (n) => new Intl.NumberFormat(code).format(n);

/** Calls back after each change of language, for what was written by a script. */
export function onLanguage(callback) {
  listeners.add(callback);
}

/** Switches all of the page to a language and remembers it. */
export function chooseLanguage(chosen) {
  try { localStorage.setItem(REMEMBERED, chosen); } catch { /* storage is closed to this page: it holds until it is left */ }
  use(chosen);
}

/** The language to begin with. */
export function startLanguage() {
  let remembered = null;
  try { remembered = localStorage.getItem(REMEMBERED); } catch { /* as above */ }
  use(remembered in WORDS ? remembered : navigator.language.toLowerCase().startsWith("zh") ? "zh-CN" : "en");
}

function use(chosen) {
  code = chosen;
  document.documentElement.lang = code;
  document.title = t("title");
  for (const node of document.querySelectorAll("[data-t]")) node.textContent = t(node.dataset.t);
  for (const node of document.querySelectorAll("[data-t-label]")) node.setAttribute("aria-label", t(node.dataset.tLabel));
  for (const listener of listeners) listener();
}
