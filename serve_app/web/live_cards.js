// The figures of GET /live as cards: one group for each model, one card for each stage.

import { element } from "./dom.js";
import { t } from "./language.js";
import { decimal, ms, percent, whole } from "./numbers.js";
import { plot, sizesPlot } from "./plot.js";

/** Traffic, latency, batches and refusals of every model. */
export function modelCards(live, history) {
  return Object.entries(live.models).map(([name, figures]) => {
    const of = (read) => history.series(({ models }) => models[name] && read(models[name]));
    const traffic = [trafficCard(figures, of, history), latencyCard(figures, of, history)];
    const tiles = element("div", { class: "tiles" }, ...traffic, batchCard(figures), refusedCard(figures, of, history));
    return element("section", { class: "model-figures" }, element("h2", { text: name }), ...versionLines(figures), tiles);
  });
}

/** Which version how many replicas serve, where there are two, and a version that was not taken in. */
function versionLines({ versions = {}, refused_version: refused }) {
  const counts = Object.entries(versions).map(([version, n]) => t("live.version", { version, n }));
  const lines = counts.length > 1 ? [element("p", { class: "versions soft", text: counts.join(" · ") })] : [];
  if (!refused) return lines;
  const why = element("span", { lang: "en", text: refused });
  return [...lines, element("p", { class: "versions error" }, t("live.refused-version"), ": ", why)];
}

/** Backlog and replicas of every stage. */
export function stageCards(live, history) {
  return live.stages.map((stage) => {
    const of = (read) => history.series(({ stages }) => {
      const same = stages.find(({ deployment }) => deployment === stage.deployment);
      return same && read(same);
    });
    return stageCard(stage, of, history);
  });
}

function trafficCard(figures, of, history) {
  const series = [{ name: t("live.answered"), key: "main", points: of((one) => one.pictures_per_s) }];
  const values = [[decimal(figures.pictures_per_s), t("live.per-s")]];
  return tile("live.traffic", values, plotted("live.traffic", series, history, decimal));
}

function latencyCard(figures, of, history) {
  const series = [
    { name: "p99", key: "second", points: of((one) => one.latency_ms?.p99) },
    { name: "p50", key: "main", points: of((one) => one.latency_ms?.p50) },
  ];
  const values = [[ms(figures.latency_ms?.p50), "p50", "main"], [ms(figures.latency_ms?.p99), "p99", "second"]];
  return tile("live.latency", values, plotted("live.latency", series, history, ms), stageTimes(figures.stages_ms));
}

function stageTimes(stages) {
  if (!stages) return note(t("live.no-pictures"));
  const parts = ["queue", "preprocess", "inference"].map((name) => `${t(`stage.${name}`)} ${ms(stages[name])}`);
  return note(parts.join(" · "));
}

function batchCard({ batch_pictures: batches }) {
  const values = [[decimal(batches?.mean), t("live.batch-mean")]];
  const some = batches && Object.values(batches.sizes).some((count) => count > 0);
  return tile("live.batches", values, some ? sizesPlot(batches.sizes, whole) : note(t("live.no-batches")));
}

function refusedCard(figures, of, history) {
  const kinds = [["shed", "second"], ["failed", "bad"], ["rejected", "third"]];
  const series = kinds.map(([kind, key]) => ({ name: t(`live.${kind}`), key, points: of((one) => one[`${kind}_per_s`]) }));
  const values = kinds.map(([kind, key]) => [decimal(figures[`${kind}_per_s`]), t(`live.${kind}`), key]);
  const rate = (value) => t("live.rate", { value: decimal(value) });
  const drawing = plotted("live.refused-title", series, history, rate);
  return tile("live.refused-title", values, drawing, note(shedShare(figures)));
}

function shedShare({ pictures_per_s: answered, shed_per_s: shed }) {
  const asked = answered + shed;
  return asked > 0 ? t("live.shed-share", { share: percent(shed / asked) }) : t("live.no-pictures");
}

function stageCard({ deployment, backlog_pictures: backlog, replicas }, of, history) {
  const running = { name: t("live.running"), key: "main", points: of((one) => one.replicas?.running) };
  const desired = { name: t("live.desired"), key: "dashed", points: of((one) => one.replicas?.desired) };
  const waiting = [{ name: t("live.backlog"), key: "second", points: of((one) => one.backlog_pictures) }];
  return element(
    "section",
    { class: "tile" },
    element("h3", { text: deployment }),
    valuesRow([[whole(replicas?.running), t("live.running"), "main"], [whole(replicas?.desired), t("live.desired"), "dashed"]]),
    plotted("live.replicas", [desired, running], history, whole, true),
    valuesRow([[whole(backlog), t("live.backlog"), "second"]]),
    plotted("live.backlog-title", waiting, history, whole),
  );
}

function plotted(label, series, history, show, steps = false) {
  return plot({ label: t(label), series, fromS: history.fromS, toS: history.toS, show, steps });
}

function tile(title, values, ...rest) {
  return element("section", { class: "tile" }, element("h3", { text: t(title) }), valuesRow(values), ...rest);
}

/** [[value, unit or name, key of its line], ...] */
function valuesRow(values) {
  return element("p", { class: "values" }, ...values.map(([value, name, key]) => {
    const unit = element("span", { class: key ? `soft key-${key}` : "soft", text: name });
    return element("span", { class: "value" }, element("strong", { text: value }), " ", unit);
  }));
}

const note = (text) => element("p", { class: "note soft", text });
