// The models of the server, as the page knows them: what they can do and what state they are in.
import { call } from "./api.js";
import { Signal, useSignal } from "./signal.js";

const STEADY_MS = 15_000;
const CHANGING_MS = 1_000;

/** `{ models, error }`. `models` is null until the first answer. A model is
 * `{ id, kind, state, progress, detail, pinned, loadable, card }`; `card` is that of `/v1/models`,
 * or null if nothing is known of the model yet. */
export const catalogue = new Signal({ models: null, error: null });

let timer = null;

/** Asks the server again, now and then at intervals. */
export async function refreshModels() {
  clearTimeout(timer);
  try {
    const [cards, states] = await Promise.all([call("v1/models"), call("models")]);
    catalogue.value = { models: merge(cards.data, states.data), error: null };
  } catch (error) {
    catalogue.value = { ...catalogue.value, error };
    if (error.status === 401) return; // the reader gave no key; the next request asks again
  }
  clearTimeout(timer);
  timer = setTimeout(refreshModels, isChanging(catalogue.value) ? CHANGING_MS : STEADY_MS);
}

export function useModels() {
  return useSignal(catalogue);
}

/** Models of a kind, such as "text" or "image", in the order of the server. */
export function modelsOfKind(models, kind) {
  return (models ?? []).filter((model) => model.kind === kind);
}

function isChanging({ models, error }) {
  return error !== null || models.some(({ state }) => !["loaded", "sleeping", "unloaded"].includes(state));
}

function merge(cards, states) {
  const cardOf = new Map(cards.map((card) => [card.id, card]));
  const kindOf = new Map(states.map(({ id, kind }) => [id, kind]));
  const listed = states.map(({ id, kind, loadable, settings, status }) => ({
    id,
    kind,
    state: status.failed ? "failed" : status.value,
    progress: status.progress,
    detail: status.detail,
    pinned: status.pinned,
    loadable,
    settings,
    parent: null,
    card: cardOf.get(id) ?? null,
  }));
  const adapters = cards.filter(({ id }) => !kindOf.has(id)).map((card) => ({
    id: card.id,
    kind: kindOf.get(card.parent) ?? null,
    state: "loaded",
    progress: null,
    detail: null,
    loadable: false,
    settings: {},
    parent: card.parent,
    card: { ...cardOf.get(card.parent), ...card },
  }));
  return [...listed, ...adapters];
}
