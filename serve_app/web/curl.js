// A picture's request as a shell command.

import { address } from "./predict.js";

/** `curl` with the file's name, as typed where the file lies. */
export function curl(name, { model, topK }) {
  return `curl --data-binary ${quoted(`@${name}`)} ${quoted(address(model, topK))}`;
}

/** One word for a POSIX shell, whatever is in it. */
function quoted(text) {
  return `'${text.replaceAll("'", `'\\''`)}'`;
}

/** Puts text on the clipboard; false where the browser refuses. */
export async function copy(text) {
  try {
    await navigator.clipboard.writeText(text); // only there over https and on localhost
    return true;
  } catch {
    return copyBySelection(text);
  }
}

function copyBySelection(text) {
  const back = document.activeElement;
  const area = Object.assign(document.createElement("textarea"), { value: text, readOnly: true, className: "unseen" });
  document.body.append(area);
  area.select();
  const done = document.execCommand("copy");
  area.remove();
  back?.focus();
  return done;
}
