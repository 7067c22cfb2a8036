// The numbers of `/metrics` that this view shows, and how fast its counters grow.
import { send } from "../lib/api.js";

const SAMPLE = /^tandem_(\w+)(?:\{(.*)\})? (\S+)$/;
const LABEL = /(\w+)="((?:\\.|[^"\\])*)"/g;
const WANTED = new Set(`num_requests_running num_requests_waiting image_num_running image_num_waiting embedding_num_running
  embedding_num_waiting reranker_num_running reranker_num_waiting upscale_num_running upscale_num_waiting matting_num_running
  matting_num_waiting kv_cache_usage_ratio kv_bytes_committed generation_tokens_total prompt_tokens_total image_images_total
  memory_held_bytes memory_budget_bytes`.split(/\s+/));

/** Reads `/metrics`: `{ time, samples: [{ name, labels, value }] }`. */
export async function readMetrics(signal) {
  const text = await (await send("metrics", { signal })).text();
  const samples = [];
  for (const line of text.split("\n")) {
    const [, name, labels, value] = line.match(SAMPLE) ?? [];
    if (WANTED.has(name)) samples.push({ name, labels: labelsOf(labels ?? ""), value: Number(value) });
  }
  return { time: performance.now(), samples };
}

/** The sum of a metric over the samples with these labels. */
export function sum(metrics, name, labels = {}) {
  return metrics.samples
    .filter((sample) => sample.name === name && Object.entries(labels).every(([key, value]) => sample.labels[key] === value))
    .reduce((total, { value }) => total + value, 0);
}

/** How fast a counter has grown between two readings, per second. */
export function growth(before, now, name, labels) {
  if (!before) return 0;
  const difference = sum(now, name, labels) - sum(before, name, labels);
  return Math.max(0, difference) / ((now.time - before.time) / 1000); // below 0 after a restart
}

function labelsOf(text) {
  return Object.fromEntries([...text.matchAll(LABEL)].map(([, name, value]) => [name, value.replace(/\\(.)/g, "$1")]));
}
