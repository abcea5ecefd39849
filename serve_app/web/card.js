// One picture's card: preview, bars, timings by stage, or what went wrong.

import { $, element, say } from "./dom.js";
import { t } from "./language.js";
import { bytes, ms, percent, whole } from "./numbers.js";
import { copy, curl } from "./curl.js";

const STAGES = ["shrink", "network", "queue", "preprocess", "inference"];

/** Writes the card of `picture` into its node. Keyboard focus stays on the button it was on. */
export function renderCard(picture, actions) {
  const focused = picture.node.contains(document.activeElement) ? document.activeElement.dataset.action : null;
  const name = element("h3", { class: "name", text: picture.file.name });
  const parts = [name, facts(picture), ...content(picture), buttons(picture, actions)];
  picture.node.className = `picture ${picture.state}`;
  picture.node.replaceChildren(preview(picture), element("div", { class: "card-body" }, ...parts));
  if (focused) picture.node.querySelector(`[data-action="${focused}"]`)?.focus();
}

function preview(picture) {
  const blob = picture.sent?.blob ?? picture.file;
  if (picture.shown !== blob) {
    if (picture.url) URL.revokeObjectURL(picture.url);
    picture.shown = blob;
    picture.url = URL.createObjectURL(blob);
    const image = element("img", { src: picture.url, alt: "", draggable: "false", decoding: "async" });
    picture.frame = element("div", { class: "frame" }, image);
    const none = () => element("p", { class: "soft", text: t("card.no-preview") });
    image.addEventListener("error", () => picture.frame.replaceChildren(none()));
  }
  return picture.frame;
}

/** "4000 × 3000 · 4.2 MB → 47 kB (99% saved)" */
function facts({ file, sent }) {
  const parts = sent?.width ? [`${whole(sent.width)} × ${whole(sent.height)}`] : [];
  if (sent?.why === "shrunk") {
    const sizes = { from: bytes(file.size), to: bytes(sent.blob.size), share: percent(1 - sent.blob.size / file.size, 0) };
    parts.push(t("card.shrunk", sizes));
  } else {
    parts.push(bytes(file.size));
    if (sent) parts.push(t(`card.sent.${sent.why}`));
  }
  return element("p", { class: "facts soft", text: parts.join(" · ") });
}

function content(picture) {
  if (picture.state === "done") return answered(picture);
  if (picture.state === "failed") return [failure(picture.error)];
  if (picture.pause) return [element("p", { class: "pause", text: t("card.pause", picture.pause) })];
  return [element("p", { class: "soft", text: t(`card.${picture.state}`) })];
}

function failure(error) {
  const node = element("p", { class: "error", text: t(`error.${error.kind}`, { status: error.status }) });
  if (error.said) node.append(": ", element("span", { lang: "en", text: error.said }));
  return node;
}

function answered({ result, sent, measured }) {
  const { answer, waitedMs, attempts, roundTripMs } = result;
  return [
    element("ol", { class: "answers", "aria-label": t("card.answers") }, ...answer.predictions.map(bar)),
    timings(stagesMs(answer.timing_ms ?? {}, roundTripMs, sent.why === "shrunk" ? sent.ms : 0)),
    attempts > 1 ? element("p", { class: "soft", text: t("card.waited", { n: attempts - 1, ms: ms(waitedMs) }) }) : null,
    measured ? saving(measured) : null,
  ].filter(Boolean);
}

function bar({ label, score }) {
  const filled = element("div", { class: "fill" });
  filled.style.width = `${100 * Math.min(1, Math.max(0, score))}%`;
  const words = [element("span", { class: "label", text: label }), " ", element("span", { class: "score", text: percent(score) })];
  const track = element("div", { class: "track", "aria-hidden": "true" }, filled);
  return element("li", {}, element("div", { class: "line" }, ...words), track);
}

/** What each stage took; the network is what the service's own stages do not explain of the round trip. */
function stagesMs({ queue, preprocess, inference }, roundTrip, shrunkMs) {
  const known = [queue, preprocess, inference].filter(Number.isFinite);
  const inside = known.reduce((total, value) => total + value, 0);
  return { shrink: shrunkMs, network: Math.max(0, roundTrip - inside), queue, preprocess, inference };
}

function timings(stages) {
  const total = Object.values(stages).filter(Number.isFinite).reduce((sum, value) => sum + value, 0);
  const shown = STAGES.filter((name) => name !== "shrink" || stages.shrink > 0);
  const picture = element("div", { class: "stages", "aria-hidden": "true" }, ...shown.map((name) => {
    const part = element("div", { class: `stage-${name}` });
    part.style.flexGrow = String(total > 0 && Number.isFinite(stages[name]) ? stages[name] / total : 0);
    return part;
  }));
  const rows = shown.map((name) => row(name, ms(stages[name])));
  return element("div", { class: "timing" }, picture, element("dl", { class: "timings" }, ...rows, row("total", ms(total))));
}

function row(name, value) {
  const term = element("dt", { class: `key-${name}`, text: t(`stage.${name}`) });
  return element("div", { "data-stage": name }, term, element("dd", { text: value }));
}

function saving(measured) {
  if (measured.state === "running") return element("p", { class: "soft", text: t("measure.running") });
  if (measured.state === "failed") return failure(measured.error);
  const figures = { without: ms(measured.withoutMs), with: ms(measured.withMs), ms: ms(Math.abs(measured.savedMs)) };
  const difference = t(measured.savedMs >= 0 ? "measure.saved" : "measure.lost", figures);
  const classes = t(measured.same ? "measure.same" : "measure.other");
  return element("p", { class: "measured", text: `${difference} ${classes}` });
}

function buttons(picture, actions) {
  const made = [];
  const add = (action, click) => {
    const attributes = { type: "button", class: "quiet", "data-action": action, text: t(`action.${action}`) };
    made.push(element("button", { ...attributes, click }));
  };
  if (picture.state === "failed") add("again", actions.again);
  if (picture.state === "done") {
    add("curl", ({ currentTarget }) => copyCurl(picture, currentTarget));
    if (picture.sent.why === "shrunk" && picture.measured?.state !== "running") add("measure", actions.measure);
    if (!picture.onDisk) made.push(saveLink(picture));
  }
  for (const one of made) one.append(element("span", { class: "unseen", text: ` ${picture.file.name}` }));
  return element("div", { class: "actions" }, ...made);
}

function saveLink({ url, file }) {
  return element("a", { class: "quiet", href: url, download: file.name, text: t("action.save") });
}

async function copyCurl(picture, button) {
  const done = await copy(curl(picture.file.name, picture.asked));
  button.firstChild.textContent = t(done ? "action.copied" : "action.not-copied");
  say($("status"), t(done ? "said.copied" : "action.not-copied"));
  setTimeout(() => { button.firstChild.textContent = t("action.curl"); }, 2500);
}
