// The history: the latest pictures, kept in the browser.
import { Signal } from "../lib/signal.js";
import { openStore } from "../lib/storage.js";
import { forget } from "./pictures.js";

const MAX_PICTURES = 120;
const MAX_BYTES = 300e6;

const store = openStore("images");

/** Kept pictures, the newest first; null until they are read. */
export const history = new Signal(null);

export async function readHistory() {
  if (history.value) return;
  const kept = await store.values().catch(() => []); // a browser may refuse, as in private windows
  history.value = kept.sort((a, b) => b.time - a.time);
}

export async function keep(picture) {
  picture.time = Date.now();
  picture.id = `${picture.time}-${Math.random().toString(36).slice(2, 8)}`;
  history.value = [picture, ...(history.value ?? [])];
  await store.set(picture.id, picture).catch(() => {});
  let bytes = 0;
  const tooMany = history.value.filter((one, i) => (bytes += sizeOf(one)) > MAX_BYTES || i >= MAX_PICTURES);
  for (const one of tooMany) await drop(one);
}

export async function drop(picture) {
  history.value = history.value.filter(({ id }) => id !== picture.id);
  forget(picture.blob);
  await store.del(picture.id).catch(() => {});
}

export async function clearHistory() {
  history.value.forEach(({ blob }) => forget(blob));
  history.value = [];
  await store.clear().catch(() => {});
}

function sizeOf({ blob, before, heatMap, files = {} }) {
  return [blob, before, heatMap, files.mask, ...(files.others ?? [])].reduce((sum, one) => sum + (one?.size ?? 0), 0);
}
