// What a reader does in a conversation.
import { add, changeMessage, conversation, newId, pathTo, shownPath } from "./conversations.js";
import { compare } from "./grounds.js";
import { bodyOf } from "./request.js";
import { Run, runs, textOf } from "./run.js";

/** Adds a message of the user and has it answered by each of `models`. */
export function say(id, content, images, models) {
  const parent = shownPath(conversation(id).value).at(-1)?.id ?? null;
  answer(id, add(id, { parent, role: "user", content, images }), models);
}

/** Has a message answered by each model; the answers of several stand side by side. */
export function answer(id, parent, models) {
  const pair = models.length > 1 ? newId() : undefined;
  for (const model of models) begin(id, { parent, model, pair });
}

/** Writes another version of an answer. */
export function regenerate(id, message) {
  begin(id, { parent: message.parent, model: message.model });
}

/** Adds another version of a message. One of the user is answered. */
export function edit(id, message, content, model) {
  const { parent, role, images } = message;
  if (role === "user") answer(id, add(id, { parent, role, content, images }), [model]);
  else add(id, { parent, role, content, model: message.model, finish: "edited" });
}

/** Goes on where an answer ended. */
export function goOn(id, message) {
  begin(id, { parent: message.parent, model: message.model, prefix: message.content, tokens: message.tokens });
}

/** Takes another token at one place of an answer and continues from there, in another version. */
export function branchAt(id, message, index, other) {
  const { tokens } = runs.get(message.id) ?? message;
  const old = tokens[index];
  const others = [{ bytes: old.bytes, logprob: old.logprob }, ...old.others.filter((one) => one !== other)];
  const kept = [...tokens.slice(0, index), { ...other, others, isPicked: true }];
  begin(id, { parent: message.parent, model: message.model, prefix: textOf(kept), tokens: kept });
}

/** Says what a tool returned. Once all calls of the answer have a result, the model goes on. */
export function giveResult(id, message, call, content) {
  const parent = shownPath(conversation(id).value).at(-1).id;
  const last = add(id, { parent, role: "tool", content, callId: call.id, name: call.name });
  const given = new Set(pathTo(conversation(id).value, last).map(({ callId }) => callId));
  if (message.calls.every((one) => given.has(one.id))) answer(id, last, [message.model]);
}

/** Says which of two answers is better: the reader's choice is "win", "loss" or "tie" for each. */
export function vote(id, messages, best) {
  for (const message of messages) {
    changeMessage(id, message.id, { vote: best === null ? "tie" : message === best ? "win" : "loss" });
  }
}

/** The body of the request that an answer came from. */
export function requestOf(id, message) {
  const { settings } = conversation(id).value;
  return bodyOf(message.model, message.settings ?? settings, pathTo(conversation(id).value, message.parent), message.prefix);
}

function begin(id, { parent, model, prefix = "", tokens = [], pair }) {
  const { settings } = conversation(id).value;
  const messageId = add(id, { parent, role: "assistant", content: prefix, model, prefix, settings, pair });
  try {
    const body = bodyOf(model, settings, pathTo(conversation(id).value, parent), prefix);
    const run = new Run(id, messageId, body, { text: prefix, tokens });
    run.write().then(() => settings.showsGrounds && run.text.trim() && compare(id, messageId));
  } catch (error) {
    changeMessage(id, messageId, { error: { message: error.message } });
  }
}
