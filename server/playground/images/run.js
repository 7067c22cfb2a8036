// A request that draws, enlarges or cuts out, from its start to its end.
import { call, stream } from "../lib/api.js";
import { catalogue, refreshModels } from "../lib/models.js";
import { Signal } from "../lib/signal.js";
import { blobOf } from "./pictures.js";

const POLL_MS = 500;

/** The request in work: `{ id, label, progress, note, previews, cancel }`, or null. */
export const work = new Signal(null);

/** Sends a request whose answer is a stream, and calls `onResult(event, blob)` for each picture.
 * `previews` has an address for each picture, or null until there is a preview. Returns how many seconds it took, or null if it was cancelled. */
export function draw(label, path, body, previews, onResult) {
  return watched(label, previews, async (options, show) => {
    for await (const { event, data } of stream(path, { body: { ...body, stream: true }, ...options })) {
      if (event.endsWith(".partial_image")) show(data);
      else if (event.endsWith(".completed")) onResult(data, blobOf(data.b64_json, `image/${data.output_format ?? "png"}`));
    }
  });
}

/** Sends a request with one answer. */
export function ask(label, path, body, previews, onResult) {
  return watched(label, previews, async (options) => {
    const answer = await call(path, { body, ...options });
    onResult(answer, blobOf(answer.data[0].b64_json));
  });
}

async function watched(label, previews, run) {
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
  work.value = { id, label, progress: 0, note: "Starting", previews, cancel };
  watch(id, update);
  try {
    await run({ signal: abort.signal, headers: { "X-Request-Id": id } }, ({ index = 0, b64_json, output_format }) => {
      const preview = `data:image/${output_format};base64,${b64_json}`;
      update({ previews: work.value.previews.with(index, preview) });
    });
    return (performance.now() - started) / 1000;
  } catch (error) {
    if (abort.signal.aborted) return null;
    throw error;
  } finally {
    work.value = null;
  }
}

/** Asks the server now and then how far the request is. */
async function watch(id, update) {
  for (;;) {
    await new Promise((resolve) => setTimeout(resolve, POLL_MS));
    if (work.value?.id !== id) return;
    update(await stateOf(id));
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
