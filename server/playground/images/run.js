// A request that draws, enlarges or cuts out, from its start to its end.
import { call, stream } from "../lib/api.js";
import { catalogue, refreshModels } from "../lib/models.js";
import { Signal } from "../lib/signal.js";
import { blobOf } from "./pictures.js";

const POLL_MS = 500;

/** The request in work: `{ id, label, progress, note, previews, cancel }`, or null. */
export const work = new Signal(null);

/** Sends a request whose answer is a stream, and calls `onResult(event, blob)` for each picture.
 * Returns how many seconds it took, or null if it was cancelled. */
export function draw(label, path, body, count, onResult) {
  return watched(label, count, async (options, show) => {
    for await (const { event, data } of stream(path, { body: { ...body, stream: true }, ...options })) {
      if (event.endsWith(".partial_image")) show(data);
      else if (event.endsWith(".completed")) onResult(data, blobOf(data.b64_json, `image/${data.output_format ?? "png"}`));
    }
  });
}

/** Sends a request with one answer. */
export function ask(label, path, body, onResult) {
  return watched(label, 1, async (options) => {
    const answer = await call(path, { body, ...options });
    onResult(answer, blobOf(answer.data[0].b64_json));
  });
}

async function watched(label, count, run) {
  const abort = new AbortController();
  const id = crypto.randomUUID?.() ?? String(Math.random());
  const update = (changes) => {
    if (work.value?.id === id) work.value = { ...work.value, ...changes };
  };
  const cancel = () => {
    call(`v1/requests/${id}`, { method: "DELETE" }).catch(() => {}); // it may be over, or not have begun
    abort.abort();
  };
  const started = performance.now();
  work.value = { id, label, progress: 0, note: "Starting", previews: Array(count).fill(null), cancel };
  const timer = setInterval(async () => update(await stateOf(id)), POLL_MS);
  try {
    await run({ signal: abort.signal, headers: { "X-Request-Id": id } }, ({ index = 0, b64_json, output_format }) => {
      const previews = [...work.value.previews];
      previews[index] = `data:image/${output_format};base64,${b64_json}`;
      update({ previews });
    });
    return (performance.now() - started) / 1000;
  } catch (error) {
    if (abort.signal.aborted) return null;
    throw error;
  } finally {
    clearInterval(timer);
    work.value = null;
  }
}

/** How far the request is, as the server says: `{ progress, note }`. */
async function stateOf(id) {
  const { data } = await call(`v1/requests?id=${id}`).catch(() => ({ data: [] }));
  const [live] = data;
  if (!live) return loadingModel();
  if (live.status !== "queued") return { progress: live.progress ?? 0, note: null };
  if (!live.id.startsWith("img-")) return { note: "Waiting" };
  const { queue_position: place } = await call(`v1/images/${live.id}`).catch(() => ({}));
  return { note: place ? `Place ${place} in the queue` : "Waiting" };
}

/** Some models are loaded by the first request that needs them. */
function loadingModel() {
  refreshModels();
  const loading = catalogue.value.models?.find(({ state }) => state === "loading" || state === "downloading");
  return loading ? { note: `Loading ${loading.id}`, progress: loading.progress ?? 0 } : {};
}
