// The numbers that this view shows, from `/metrics` and `/v1/requests`, and how fast they grow.
import { call, send } from "../lib/api.js";

const SAMPLE = /^tandem_(\w+)(?:\{(.*)\})? (\S+)$/;
const LABEL = /(\w+)="((?:\\.|[^"\\])*)"/g;
const WANTED = new Set(`num_requests_running num_requests_waiting image_num_running image_num_waiting embedding_num_running
  embedding_num_waiting reranker_num_running reranker_num_waiting upscale_num_running upscale_num_waiting matting_num_running
  matting_num_waiting kv_cache_usage_ratio kv_bytes_committed generation_tokens_total prompt_tokens_total image_images_total
  memory_held_bytes memory_budget_bytes`.split(/\s+/));

/** Reads what the server does: `{ time, samples, requests }`. A sample of `/metrics` is
 * `{ name, labels, value }`. */
export async function read() {
  const [answer, { data: requests }] = await Promise.all([send("metrics"), call("v1/requests")]);
  const text = await answer.text();
  const samples = [];
  for (const line of text.split("\n")) {
    const [, name, labels, value] = line.match(SAMPLE) ?? [];
    if (WANTED.has(name)) samples.push({ name, labels: labelsOf(labels ?? ""), value: Number(value) });
  }
  return { time: performance.now(), samples, requests };
}

/** The sum of a metric over the samples with these labels. */
export function sum(metrics, name, labels = {}) {
  return metrics.samples
    .filter((sample) => sample.name === name && Object.entries(labels).every(([key, value]) => sample.labels[key] === value))
    .reduce((total, { value }) => total + value, 0);
}

/** How fast a number has grown between two readings, per second. `numberIn` takes it from a reading. */
export function growth(before, now, numberIn) {
  if (!before) return 0;
  const difference = numberIn(now) - numberIn(before);
  return Math.max(0, difference) / ((now.time - before.time) / 1000); // below 0 after a restart
}

/** The tokens that a model, or all models, have written. The counter has those of ended requests. */
export function tokensWritten(model) {
  return (reading) =>
    sum(reading, "generation_tokens_total", model ? { model_name: model } : {}) +
    reading.requests.filter((one) => !model || one.model === model).reduce((total, one) => total + (one.completion_tokens ?? 0), 0);
}

function labelsOf(text) {
  return Object.fromEntries([...text.matchAll(LABEL)].map(([, name, value]) => [name, value.replace(/\\(.)/g, "$1")]));
}
