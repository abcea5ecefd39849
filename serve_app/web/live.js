// The tab "Live": asks GET /live each second while it is seen, and shows what that says, nothing else.

import { $, become, say } from "./dom.js";
import { History } from "./history.js";
import { onLanguage, t } from "./language.js";
import { modelCards, stageCards } from "./live_cards.js";
import { onTab } from "./tabs.js";

const EVERY_MS = 1000;
const PATIENCE_MS = 4000;
const TOO_OLD = 3; // polls that failed: from then on the last figures are not shown any more
const history = new History();
let shown = false;
let timer = 0;
let asking = null;
let state = { kind: "asking", live: null, failures: 0 };

async function poll() {
  if (asking) return;
  const mine = asking = new AbortController();
  try {
    const live = await ask(AbortSignal.any([mine.signal, AbortSignal.timeout(PATIENCE_MS)]));
    history.add(now(), live);
    state = { kind: "live", live, failures: 0 };
  } catch (error) {
    if (mine.signal.aborted) return;
    history.add(now(), null);
    state = { kind: "failed", live: state.live, status: error.status ?? null, failures: state.failures + 1 };
  }
  asking = null;
  show();
  if (watched()) timer = setTimeout(poll, EVERY_MS);
}

async function ask(signal) {
  const response = await fetch("live", { headers: { Accept: "application/json" }, signal });
  if (!response.ok) throw Object.assign(new Error("refused"), { status: response.status });
  const live = await response.json();
  if (typeof live.models !== "object" || !Array.isArray(live.stages)) throw new Error("not the figures of this service");
  return live;
}

const now = () => performance.now() / 1000;
const watched = () => shown && document.visibilityState === "visible";

function changed() {
  clearTimeout(timer);
  if (watched()) poll();
  else {
    asking?.abort();
    asking = null;
  }
}

function show() {
  say($("live-state"), words());
  $("live-state").className = state.kind === "failed" ? "error" : "soft";
  const old = state.failures >= TOO_OLD;
  $("live-figures").hidden = !state.live || old;
  if (!state.live || old) return;
  become($("live-models"), modelCards(state.live, history));
  become($("live-stages"), stageCards(state.live, history));
}

function words() {
  if (state.kind === "asking") return t("live.asking");
  if (state.kind === "failed" && state.status === null) return t("live.no-answer");
  if (state.kind === "failed") return t("live.refused", { status: state.status });
  return t("live.window", { seconds: state.live.window_s, n: state.live.replicas_reporting });
}

document.addEventListener("visibilitychange", changed);
onTab((name) => {
  shown = name === "live";
  changed();
});
onLanguage(show);
