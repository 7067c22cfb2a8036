// The server's copies of conversations, where the operator lets it keep them.
import { call, send } from "../lib/api.js";
import { told } from "../lib/operator.js";
import { Signal } from "../lib/signal.js";

const PATH = "v1/playground/conversations";
const WRITE_AFTER_MS = 1500;

/** Why the server did not keep a conversation, or null. */
export const remoteProblem = new Signal(null);

const writing = new Map();

/** `{ data, deleted }`: `{ id, title, updated }` of the server's conversations, and the ids of those
 * that are to be forgotten. Null if it keeps none. */
export async function remoteSummaries() {
  const { keeps_history: isOn } = await told;
  return isOn ? call(PATH) : null;
}

export function readRemote(id) {
  return call(`${PATH}/${id}`);
}

/** Sends a conversation soon, in the state that `get` returns then. */
export async function writeRemote(id, get) {
  const { keeps_history: isOn } = await told;
  if (!isOn || writing.has(id)) return;
  writing.set(id, setTimeout(async () => {
    writing.delete(id);
    try {
      const one = await get();
      if (!one) return; // it was deleted meanwhile
      await send(`${PATH}/${id}`, { method: "PUT", body: one });
      remoteProblem.value = null;
    } catch (problem) {
      remoteProblem.value = problem;
    }
  }, WRITE_AFTER_MS));
}

export async function deleteRemote(id) {
  clearTimeout(writing.get(id));
  writing.delete(id);
  const { keeps_history: isOn } = await told;
  if (isOn) await send(`${PATH}/${id}`, { method: "DELETE" });
}
