// The pictures on the page and the way of each: waiting, shrinking, sending, then done or failed.

import { $, element, say } from "./dom.js";
import { renderCard } from "./card.js";
import { onLanguage, t } from "./language.js";
import { chosenModel, chosenTopK, loadModels } from "./models.js";
import { bytes, ms, percent } from "./numbers.js";
import { NoAnswer, predict, Refusal } from "./predict.js";
import { shrink } from "./shrink.js";

let pictures = []; // newest batch first, as shown
let ongoing = new AbortController();

/** Takes picture files and classifies them. `onDisk`: the reader has them under these names, as curl needs. */
export function addPictures(files, onDisk) {
  const added = [...files].map((file) => ({ file, onDisk, node: element("li", { class: "picture" }) }));
  pictures = [...added, ...pictures];
  $("pictures").prepend(...added.map((picture) => picture.node));
  classifyAll(added);
}

async function classifyAll(chosen) {
  const { signal } = ongoing;
  for (const picture of chosen) start(picture);
  summarize();
  await Promise.all(chosen.map((picture) => classify(picture, signal)));
  if (!signal.aborted) announce(chosen);
}

function start(picture) {
  Object.assign(picture, { state: "waiting", sent: null, result: null, error: null, pause: null, measured: null });
  show(picture);
}

async function classify(picture, signal) {
  try {
    await picture.file.slice(0, 1).arrayBuffer(); // a folder, or a file gone meanwhile, fails here and not as "no answer"
  } catch {
    return settle(picture, signal, { state: "failed", error: { kind: "file" } });
  }
  await loadModels();
  const [model, topK] = [chosenModel(), chosenTopK()];
  picture.asked = { model: model?.name ?? null, topK };
  try {
    picture.sent = await prepare(picture, model, signal);
    show(picture);
    const result = await predict(picture.sent.blob, { ...picture.asked, signal, ...progress(picture) });
    settle(picture, signal, { state: "done", result });
  } catch (error) {
    settle(picture, signal, { state: "failed", error: told(error) });
  }
}

function settle(picture, signal, outcome) {
  if (signal.aborted) return;
  Object.assign(picture, outcome, { pause: null });
  show(picture);
  summarize();
}

function told(error) {
  if (error instanceof Refusal) return { kind: "refused", status: error.status, said: error.said };
  if (error instanceof NoAnswer || error.name === "AbortError") return { kind: "no-answer" };
  throw error;
}

async function prepare(picture, model, signal) {
  signal.throwIfAborted();
  if (!$("shrink").checked) return { blob: picture.file, why: "off" };
  if (!model?.input?.resize_size) return { blob: picture.file, why: "unknown" };
  picture.state = "shrinking";
  show(picture);
  const made = await shrink(picture.file, model.input);
  signal.throwIfAborted(); // it may be classified anew by now
  picture.state = "waiting";
  return made;
}

function progress(picture) {
  const become = (change) => { Object.assign(picture, change); show(picture); };
  return {
    onSend: () => become({ state: "sending" }),
    onWait: (pause) => { if (pause || picture.pause) become({ pause }); },
  };
}

/** Sends the shrunk picture and then the original once more, alone, and says what the difference is. */
async function measure(picture) {
  const { signal } = ongoing;
  picture.measured = { state: "running" };
  show(picture);
  try {
    const small = await predict(picture.sent.blob, { ...picture.asked, signal });
    const large = await predict(picture.file, { ...picture.asked, signal });
    const [first, other] = [small, large].map(({ answer }) => answer.predictions[0].class_id);
    const withMs = picture.sent.ms + small.roundTripMs;
    const savedMs = large.roundTripMs - withMs;
    picture.measured = { state: "done", withMs, withoutMs: large.roundTripMs, savedMs, same: first === other };
  } catch (error) {
    if (signal.aborted) return;
    picture.measured = { state: "failed", error: told(error) };
  }
  show(picture);
  summarize();
}

function show(picture) {
  renderCard(picture, { again: () => classifyAll([picture]), measure: () => measure(picture) });
}

/** The line above the cards: how many, and what shrinking saved so far. */
function summarize() {
  const [done, failed] = ["done", "failed"].map((state) => pictures.filter((picture) => picture.state === state));
  $("results-tools").hidden = pictures.length === 0;
  $("empty").hidden = pictures.length > 0;
  $("pictures").setAttribute("aria-busy", String(done.length + failed.length < pictures.length));
  const parts = [t("summary.pictures", { n: pictures.length }), t("summary.done", { n: done.length })];
  if (failed.length) parts.push(t("summary.failed", { n: failed.length }));
  say($("summary"), parts.join(" · "));
  say($("saved"), savings(done));
}

function savings(done) {
  const shrunk = done.filter(({ sent }) => sent.why === "shrunk");
  if (!shrunk.length) return "";
  const [from, to] = [sum(shrunk, ({ file }) => file.size), sum(shrunk, ({ sent }) => sent.blob.size)];
  const words = [t("saved.bytes", { n: shrunk.length, bytes: bytes(from - to), share: percent(1 - to / from, 0) })];
  const measured = shrunk.filter((picture) => picture.measured?.state === "done");
  const savedMs = sum(measured, (picture) => picture.measured.savedMs);
  const key = savedMs >= 0 ? "saved.ms" : "saved.lost";
  if (measured.length) words.push(t(key, { n: measured.length, ms: ms(Math.abs(savedMs)) }));
  return words.join(" ");
}

const sum = (list, of) => list.reduce((total, one) => total + of(one), 0);

/** Said aloud when a batch is through. */
function announce(chosen) {
  const done = chosen.filter(({ state }) => state === "done");
  const words = [t("said.done", { n: done.length, all: chosen.length })];
  if (done.length === 1) {
    const [best] = done[0].result.answer.predictions;
    words.push(t("said.best", { name: done[0].file.name, label: best.label, score: percent(best.score) }));
  }
  if (done.length < chosen.length) words.push(t("said.failed", { n: chosen.length - done.length }));
  say($("status"), "");
  say($("status"), words.join(" "));
}

$("again").addEventListener("click", () => {
  stop();
  classifyAll(pictures);
});
$("clear").addEventListener("click", () => {
  stop();
  for (const { url } of pictures) if (url) URL.revokeObjectURL(url);
  pictures = [];
  $("pictures").replaceChildren();
  summarize();
  say($("status"), "");
  $("file").focus();
});
onLanguage(() => {
  for (const picture of pictures) show(picture);
  if (pictures.length) summarize();
});

function stop() {
  ongoing.abort();
  ongoing = new AbortController();
}
