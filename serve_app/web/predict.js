// One picture to POST /predict: a few at a time, and politely again when the service has no room.

const IN_FLIGHT = 3;
const MOST_ATTEMPTS = 6;
const LONGEST_WAIT_S = 60;

/** The service's refusal of one picture. `said` is its own (English) message, or "" when it gave none. */
export class Refusal extends Error {
  constructor(status, said) {
    super(said || `status ${status}`);
    this.status = status;
    this.said = said;
  }
}

/** No answer at all: not running, not reachable, or it hung up. */
export class NoAnswer extends Error {}

/** At most so many of the functions given to it run at a time, the others in the order they came. */
export function atMost(limit) {
  let running = 0;
  const waiting = [];
  return async (work) => {
    if (running >= limit) await new Promise((go) => waiting.push(go));
    else running += 1;
    try {
      return await work();
    } finally {
      if (waiting.length) waiting.shift()();
      else running -= 1;
    }
  };
}

const inTurn = atMost(IN_FLIGHT);
let pausedUntil = 0; // performance.now(); one refusal keeps all pictures back, not only its own

/**
 * Classifies one picture.
 *
 * onWait({ seconds, attempt }) is called while a picture waits for room, each second, and with null when it goes on.
 * Gives { answer, roundTripMs (of the attempt that was answered), waitedMs, attempts }.
 * Throws Refusal, NoAnswer, or AbortError when `signal` fires.
 */
export function predict(body, { model, topK, signal, onSend = () => {}, onWait = () => {} }) {
  return inTurn(async () => {
    const start = performance.now();
    for (let attempt = 1; ; attempt += 1) {
      await wait(signal, (seconds) => onWait({ seconds, attempt }));
      signal?.throwIfAborted();
      onWait(null);
      onSend();
      const sent = performance.now();
      const response = await post(body, address(model, topK), attempt, signal);
      if (response.ok) {
        const answer = await understood(response);
        return { answer, roundTripMs: performance.now() - sent, waitedMs: sent - start, attempts: attempt };
      }
      const pause = retryAfterS(response);
      if (![429, 503].includes(response.status) || pause === null || attempt >= MOST_ATTEMPTS) throw await refusal(response);
      // A little more for each, so that those who were refused together do not come back together.
      pausedUntil = Math.max(pausedUntil, performance.now() + 1000 * (pause + Math.random() * 0.5));
    }
  });
}

/** The address that classifies with a model. */
export function address(model, topK) {
  const url = new URL("predict", document.baseURI);
  if (model) url.searchParams.set("model", model);
  url.searchParams.set("top_k", topK);
  return url.href;
}

async function post(body, url, attempt, signal) {
  const headers = { "Content-Type": body.type || "application/octet-stream", Accept: "application/json" };
  if (attempt > 1) headers["x-retry-attempt"] = String(attempt - 1);
  try {
    return await fetch(url, { method: "POST", body, headers, signal });
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new NoAnswer();
  }
}

async function understood(response) {
  try {
    const answer = await response.json();
    if (answer.predictions.every(({ label, score }) => typeof label === "string" && Number.isFinite(score))) return answer;
  } catch (error) {
    if (error.name === "AbortError") throw error;
  }
  throw new NoAnswer();
}

async function refusal(response) {
  let said = "";
  try { said = String((await response.json()).error.message); } catch { /* not ours: a proxy's page */ }
  return new Refusal(response.status, said);
}

function retryAfterS(response) {
  const header = response.headers.get("retry-after");
  if (header === null) return response.status === 429 ? 1 : null;
  const seconds = /^\d+$/.test(header) ? Number(header) : (Date.parse(header) - Date.now()) / 1000;
  return Number.isFinite(seconds) ? Math.min(Math.max(seconds, 0), LONGEST_WAIT_S) : 1;
}

async function wait(signal, tell) {
  for (let left = pausedUntil - performance.now(); left > 0 && !signal?.aborted; left = pausedUntil - performance.now()) {
    tell(Math.ceil(left / 1000));
    await new Promise((go) => setTimeout(go, Math.min(left, 1000)));
  }
}
