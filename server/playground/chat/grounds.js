// How far an answer rests on what the model was told: its sentences, compared with those of the
// conversation before it.
import { call } from "../lib/api.js";
import { html } from "../lib/dom.js";
import { catalogue, modelsOfKind } from "../lib/models.js";
import { ErrorNote } from "../lib/ui.js";
import { changeMessage, conversation, pathTo } from "./conversations.js";

const MOST_PASSAGES = 256;
const running = new Set(); // the ids of messages that this tab compares now

/** The model that compares, or undefined. */
export function comparer() {
  return modelsOfKind(catalogue.value.models, "embedding").find(({ state }) => state !== "failed")?.id;
}

/** Compares an answer with what the model was told, and keeps the outcome as the message's `grounds`:
 * `{ isRunning }`, `{ error }`, or `{ num, doubts: [{ text, isContrary, conflicts }] }`. */
export async function compare(id, messageId) {
  const keep = (grounds) => changeMessage(id, messageId, { grounds });
  const one = conversation(id).value;
  const { content: answer, parent, settings } = one.messages.find((message) => message.id === messageId);
  const told = pathTo(one, parent).filter(({ role }) => role !== "assistant").map(({ content }) => content);
  const passages = [settings?.system ?? "", ...told].filter((text) => text.trim()).slice(-MOST_PASSAGES);
  running.add(messageId);
  keep({ isRunning: true });
  try {
    const { sentences } = await call("v1/groundedness", { body: { model: comparer(), answer, passages } });
    const characters = [...answer]; // as the server counts them, not UTF-16's halves
    const doubts = sentences.filter(({ risk }) => risk).map(({ characters: [begin, end], risk, conflicts }) => (
      { text: characters.slice(begin, end).join(""), isContrary: risk === "intrinsic", conflicts }));
    keep({ num: sentences.length, doubts });
  } catch (error) {
    keep({ error: { message: error.message } });
  } finally {
    running.delete(messageId);
  }
}

export function Grounds({ messageId, grounds: { isRunning, error, num, doubts }, onRetry }) {
  if (isRunning) return running.has(messageId) && html`<p class="hint" role="status">Comparing with the conversation…</p>`;
  if (error) return html`<${ErrorNote} error=${error} onRetry=${onRetry} />`;
  return html`<details class="grounds">
    <summary>${summaryOf(num, doubts.length)}</summary>
    ${doubts.length > 0 && html`<ul>${doubts.map(({ text, isContrary, conflicts }) => html`<li>
      <q>${text}</q>
      <span>${isContrary ? `The conversation may say otherwise: ${conflicts.join(", ")}.` : "Nothing before it says this."}</span>
    </li>`)}</ul>`}
    <p class="hint">Each sentence is compared with the system prompt and your messages, by similarity and by words. This is a hint, not proof: nothing here
      understands the text, and what the conversation does not say may still be true.</p>
  </details>`;
}

function summaryOf(num, numDoubts) {
  if (num === 1) return numDoubts === 0 ? "The sentence is like one before it" : "The sentence may not rest on the conversation";
  return numDoubts === 0 ? `All ${num} sentences are like some before them` : `${numDoubts} of ${num} sentences may not rest on the conversation`;
}
