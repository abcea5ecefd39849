// What GET /models says, and which model new pictures go to.

import { $, element, say } from "./dom.js";
import { onLanguage, t } from "./language.js";

const TOP_K = [1, 3, 5, 10];
const AGAIN_MS = 5000;
let models = [];
let firstAnswer = null;

/** The chosen model's entry of /models, or null while none is known. */
export function chosenModel() {
  return models.find(({ name }) => name === $("model").value) ?? models.find((one) => one.default) ?? models[0] ?? null;
}

/** How many classes to ask for. */
export function chosenTopK() {
  return Number($("top-k").value);
}

/** Asks the service what it serves, again and again until it says so; waits for the first answer only. */
export function loadModels() {
  firstAnswer ??= ask();
  return firstAnswer;
}

async function ask() {
  try {
    const response = await fetch("models", { headers: { Accept: "application/json" } });
    if (!response.ok) throw new Error(response.statusText);
    const named = (await response.json()).models.filter(({ name }) => typeof name === "string");
    if (!named.length) throw new Error("no models");
    models = named;
    offer();
  } catch {
    setTimeout(ask, AGAIN_MS);
  }
  describe();
}

function offer() {
  const first = chosenModel();
  $("model").replaceChildren(...models.map(({ name }) => element("option", { value: name, text: name })));
  $("model").value = first.name;
  $("model-choice").hidden = models.length < 2;
}

function describe() {
  const model = chosenModel();
  const classes = model?.num_classes ?? Infinity;
  for (const option of $("top-k").options) option.disabled = Number(option.value) > classes;
  if (chosenTopK() > classes) $("top-k").value = String(Math.max(...TOP_K.filter((k) => k <= classes)));
  say($("about"), model ? facts(model).join(" · ") : t("models.unknown"));
  say($("untrained"), model?.trained === false ? t("untrained", { name: model.name }) : "");
}

function facts(model) {
  return [
    model.name,
    [model.backend, model.precision].filter(Boolean).join(" "),
    Number.isFinite(model.num_classes) && t("classes", { n: model.num_classes }),
    model.preprocess && t("models.preprocess", { mode: model.preprocess }),
    model.device && String(model.device),
    model.version && t("models.version", { version: model.version }),
  ].filter(Boolean);
}

$("model").addEventListener("change", describe);
onLanguage(describe);
