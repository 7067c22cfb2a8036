// Requests to the server, with the reader's API key, and its errors as sentences.
import { Signal } from "./signal.js";

/** The address of the server, with the prefix under which a proxy publishes it. */
export const BASE = new URL("../../", import.meta.url);
const KEY = "tandem.key";

/** Set while the page waits for a key: `{ message, answer }`. The shell shows the dialog. */
export const keyRequest = new Signal(null);
let waiting = null;

export class ApiError extends Error {
  constructor(message, status, code) {
    super(message);
    this.status = status;
    this.code = code;
  }
}

/** Sends a request and returns the answer, which is ok. Anything else is an `ApiError`. */
export async function send(path, { method, body, signal, headers } = {}) {
  for (;;) {
    const key = sessionStorage.getItem(KEY);
    const response = await reach(path, {
      method: method ?? (body === undefined ? "GET" : "POST"),
      headers: {
        ...(body === undefined || body instanceof FormData ? {} : { "Content-Type": "application/json" }),
        ...(key ? { Authorization: `Bearer ${key}` } : {}),
        ...headers,
      },
      body: body === undefined || body instanceof FormData ? body : JSON.stringify(body),
      signal,
      cache: "no-store",
    });
    if (response.ok) return response;
    const error = await errorOf(response);
    if (response.status !== 401) throw error;
    // Another request may have been given a key meanwhile.
    if (sessionStorage.getItem(KEY) === key) await askForKey(error.message, signal);
  }
}

/** Sends a request and returns the JSON of the answer. */
export async function call(path, options) {
  return (await send(path, options)).json();
}

/** Sends a request and yields the events of the answer, `{ event, data }`, up to `[DONE]`. */
export async function* stream(path, options) {
  const response = await send(path, options);
  let event = "message";
  for await (const line of linesOf(response.body)) {
    if (line === "") event = "message";
    else if (line.startsWith("event:")) event = line.slice(6).trim();
    else if (line.startsWith("data:")) {
      const text = line.slice(5).trim();
      if (text === "[DONE]") return;
      const data = JSON.parse(text);
      if (data.error) throw new ApiError(data.error.message ?? String(data.error), 200, data.error.code);
      yield { event, data };
    }
  }
}

async function* linesOf(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      const lines = (rest + value).split(/\r?\n/);
      rest = lines.pop();
      yield* lines;
    }
  } catch (error) {
    throw error.name === "AbortError" ? error : lost();
  } finally {
    reader.cancel().catch(() => {});
  }
}

async function reach(path, options) {
  try {
    return await fetch(new URL(path, BASE), options);
  } catch (error) {
    throw error.name === "AbortError" ? error : lost();
  }
}

function lost() {
  return new ApiError("The connection to the server was lost. It may be restarting; try again.", 0, "lost");
}

async function errorOf(response) {
  const text = await response.text();
  let error = {};
  try {
    error = JSON.parse(text).error ?? {};
  } catch {
    // A proxy in front may answer with a page of its own.
  }
  const message = error.message ?? `The server answered ${response.status} ${response.statusText}.`;
  return new ApiError(message, response.status, error.code);
}

/** Asks once for all requests that wait. */
function askForKey(message, signal) {
  waiting ??= new Promise((resolve, reject) => {
    keyRequest.value = {
      message,
      answer(key) {
        keyRequest.value = waiting = null;
        if (key === null) reject(new ApiError(message, 401, "invalid_api_key"));
        else resolve(sessionStorage.setItem(KEY, key));
      },
    };
  });
  return signal ? Promise.race([waiting, aborted(signal)]) : waiting;
}

function aborted(signal) {
  return new Promise((_, reject) => signal.addEventListener("abort", () => reject(signal.reason)));
}
