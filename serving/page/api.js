// Talking to the service: one picture a request, and every way it can fail in words.

const TOP_K = 5;
const MAX_TRIES = 4;
const TITLES = {
  401: "The service asks for a key",
  400: "The service did not understand the request",
  404: "This service does not do that",
  413: "This picture is too large",
  415: "This is not a picture the service can read",
  422: "This picture is damaged",
  429: "The service is busy",
  500: "Something went wrong in the service",
  502: "The service cannot be reached",
  503: "The service is not ready",
  504: "This took too long",
};
const WORTH_ANOTHER_TRY = new Set([429, 500, 502, 503, 504]);

let key = ""; // in memory only: gone when the page is left

/** Send this API key from now on. */
export function useKey(text) {
  key = text;
}

/** Why there is no answer, for people. */
export class Failure extends Error {
  constructor(title, detail, { status = 0, code = "", requestId = "", retryAfterS = 1 } = {}) {
    super(title);
    Object.assign(this, { title, detail, status, code, requestId, retryAfterS });
    this.canRetry = status === 0 || WORTH_ANOTHER_TRY.has(status);
    this.isGone = code === "unknown_model"; // a version that was replaced meanwhile, say
  }
}

/** What the service says of one picture; `blend` where there are experts, `how` as `submit` has. */
export function classify(file, { blend, ...how }) {
  const both = blend === undefined ? {} : { experts: "true", blend };
  return submit("v1/classify", file, { ...both, top_k: TOP_K }, how);
}

/** The same with where both experts looked, of a model that explains. */
export function explain(file, how) {
  return submit("v1/explain", file, {}, how);
}

/**
 * The answer to one picture, of a model or the default one.
 *
 * A busy service says when to come back; that is done here, a few times, with `onWait(seconds)`
 * called before each pause.
 */
async function submit(path, file, options, { model, signal, onWait }) {
  try {
    await file.slice(0, 1).arrayBuffer();
  } catch {
    throw new Failure("This file cannot be read", "It may have moved, or it is a folder.");
  }
  const chosen = model && { model: model.name, version: model.version };
  const query = new URLSearchParams({ ...options, ...chosen });
  for (let attempt = 1; ; attempt++) {
    try {
      return await ask(`${path}?${query}`, {
        method: "POST",
        body: file,
        // The bytes say what a file is; its name, which a browser goes by, may lie.
        headers: { "Content-Type": "application/octet-stream", Accept: "application/json" },
        signal,
      });
    } catch (error) {
      const busy = error instanceof Failure && (error.status === 429 || error.status === 503);
      if (!busy || attempt === MAX_TRIES) throw error;
      onWait(error.retryAfterS);
      await pause(error.retryAfterS, signal);
    }
  }
}

/** The models that are served. */
export async function fetchModels() {
  return (await ask("v1/models", { headers: { Accept: "application/json" } })).models;
}

async function ask(path, options) {
  const headers = key ? { ...options.headers, "X-API-Key": key } : options.headers;
  let response;
  try {
    response = await fetch(path, { credentials: "same-origin", ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Failure("No connection to the service", "Check the network, then try again.");
  }
  let body = null;
  try {
    body = await response.json();
  } catch (error) {
    if (error.name === "AbortError") throw error;
  }
  if (response.ok && body) return body;
  throw failureOf(response, body);
}

function failureOf(response, body) {
  const { code = "", message = "", request_id: requestId = "" } = body?.error ?? {};
  const status = response.status;
  const title = TITLES[status] ?? `The service answered with status ${status}`;
  const seconds = Number(response.headers.get("Retry-After"));
  const retryAfterS = seconds > 0 && seconds <= 30 ? seconds : 1;
  const detail = status === 401 ? "Enter it above." : sentence(message);
  return new Failure(title, detail, { status, code, requestId, retryAfterS });
}

function sentence(text) {
  if (!text) return "";
  return text[0].toUpperCase() + text.slice(1) + (/[.!?]$/.test(text) ? "" : ".");
}

function pause(seconds, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, 1000 * seconds);
    signal.addEventListener("abort", () => {
      clearTimeout(timer);
      reject(signal.reason ?? new DOMException("aborted", "AbortError"));
    });
  });
}
