// The ways in: choose, drop, paste, camera.

import { $, say } from "./dom.js";
import { t } from "./language.js";
import { addPictures } from "./pictures.js";

let pasted = 0;

/** Takes files, or says why there are none. */
function take(files, onDisk, otherwise) {
  say($("problem"), files.length ? "" : t(otherwise));
  if (files.length) addPictures(files, onDisk);
}

function chosen({ currentTarget }) {
  const files = [...currentTarget.files];
  currentTarget.value = ""; // so that the same file can be chosen again
  if (files.length) take(files, true);
}

/** Pictures on the clipboard are all named image.png: numbered, they can be told apart. */
function named(file) {
  if (file.name !== "image.png") return file;
  pasted += 1;
  return new File([file], `pasted-${pasted}.png`, { type: file.type });
}

for (const id of ["file", "capture"]) $(id).addEventListener("change", chosen);
$("file").addEventListener("keydown", (event) => { // Chromium opens the chooser with the space bar only
  if (event.key === "Enter") { event.preventDefault(); $("file").click(); }
});
addEventListener("dragover", (event) => {
  event.preventDefault();
  event.dataTransfer.dropEffect = "copy";
  document.body.classList.add("dragging");
});
addEventListener("dragleave", (event) => { if (!event.relatedTarget) document.body.classList.remove("dragging"); });
addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("dragging");
  take([...event.dataTransfer.files], true, "problem.drop");
});
addEventListener("paste", (event) => take([...(event.clipboardData?.files ?? [])].map(named), false, "problem.paste"));
