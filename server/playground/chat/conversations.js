// Conversations: trees of messages, which the browser keeps, and the server where its operator wants.
//
// A conversation is `{ id, title, created, updated, model, settings, messages, chosen }`. A message
// is `{ id, parent, role, content, … }`; `parent` is null for a first one. Messages with one parent
// are versions of one turn, and `chosen` has the shown one by its parent's id ("" for none).
import { Signal } from "../lib/signal.js";
import { openStore } from "../lib/storage.js";
import { deleteRemote, readRemote, remoteProblem, remoteSummaries, writeRemote } from "./remote.js";

const SAVE_AFTER_MS = 400;

const whole = openStore("conversations");
const brief = openStore("summaries");
const channel = new BroadcastChannel("tandem.conversations");
const signals = new Map();
const saving = new Map();
/** The summaries of the server's conversations by id; null if it keeps none. */
let remote = null;

/** `{ id, title, updated }` of all conversations, newest first; null until they are read. */
export const summaries = new Signal(null);
/** Why conversations cannot be kept, or null. */
export const storageProblem = new Signal(null);

channel.onmessage = async ({ data: id }) => {
  readSummaries();
  if (signals.has(id) && !saving.has(id)) signals.get(id).value = (await whole.get(id)) ?? null;
};

readSummaries();
readRemoteSummaries();
addEventListener("focus", readRemoteSummaries);

export const newId = () => crypto.getRandomValues(new Uint32Array(3)).reduce((id, part) => id + part.toString(36), "");

/** The signal of a conversation: undefined until it is read, null if there is none. */
export function conversation(id) {
  if (!signals.has(id)) {
    signals.set(id, new Signal(undefined));
    newest(id).then(
      (found) => (signals.get(id).value ??= found ?? null),
      (error) => {
        storageProblem.value = error;
        signals.get(id).value = null;
      },
    );
  }
  return signals.get(id);
}

/** Begins a conversation; it is kept from its first message on. */
export function begin(fields) {
  const now = Date.now();
  const one = { id: newId(), title: "", created: now, updated: now, messages: [], chosen: {}, ...fields };
  signals.set(one.id, new Signal(one));
  return one.id;
}

/** Changes fields of a conversation and saves it soon. `change` gets it and returns the fields. */
export function change(id, change) {
  const signal = signals.get(id);
  if (!signal?.value) return; // it was deleted meanwhile
  signal.value = { ...signal.value, ...change(signal.value), updated: Date.now() };
  saving.set(id, saving.get(id) ?? setTimeout(() => save(id), SAVE_AFTER_MS));
}

/** Changes fields of a message. */
export function changeMessage(id, messageId, fields) {
  change(id, ({ messages }) => ({
    messages: messages.map((one) => (one.id === messageId ? { ...one, ...fields } : one)),
  }));
}

/** Adds a message and shows it. Returns its id. */
export function add(id, message) {
  const messageId = newId();
  change(id, ({ messages, chosen, title }) => ({
    messages: [...messages, { id: messageId, created: Date.now(), ...message }],
    chosen: { ...chosen, [message.parent ?? ""]: messageId },
    title: title || (message.role === "user" ? titleOf(message.content) : ""),
  }));
  return messageId;
}

export function choose(id, message) {
  change(id, ({ chosen }) => ({ chosen: { ...chosen, [message.parent ?? ""]: message.id } }));
}

/** The messages on show, from the first on. */
export function shownPath({ messages, chosen }) {
  const path = [];
  for (let parent = null; ; ) {
    const versions = versionsOf(messages, parent);
    const next = versions.find(({ id }) => id === chosen[parent ?? ""]) ?? versions.at(-1);
    if (!next) return path;
    path.push(next);
    parent = next.id;
  }
}

/** The messages up to one, from the first on. */
export function pathTo({ messages }, id) {
  const ofId = new Map(messages.map((message) => [message.id, message]));
  const path = [];
  for (let one = ofId.get(id); one; one = ofId.get(one.parent)) path.unshift(one);
  return path;
}

export function versionsOf(messages, parent) {
  return messages.filter((message) => message.parent === parent);
}

export async function remove(id) {
  clearTimeout(saving.get(id));
  saving.delete(id);
  if (signals.has(id)) signals.get(id).value = null;
  remote?.delete(id);
  await Promise.all([whole.del(id), brief.del(id), deleteRemote(id).catch((problem) => (remoteProblem.value = problem))]);
  tell(id);
}

export async function rename(id, title) {
  conversation(id);
  await until(() => signals.get(id).value !== undefined);
  change(id, () => ({ title }));
}

/** The conversations whose title or text contains all words of a query. */
export async function search(query) {
  const words = query.toLowerCase().split(/\s+/).filter(Boolean);
  const here = await whole.values();
  const known = new Set(here.map(({ id }) => id));
  const titles = [...(remote?.values() ?? [])].filter(({ id }) => !known.has(id)).map((one) => ({ ...one, messages: [] }));
  return new Set(
    [...here, ...titles]
      .filter(({ title, messages }) => {
        const text = [title, ...messages.map(({ content }) => content)].join("\n").toLowerCase();
        return words.every((word) => text.includes(word));
      })
      .map(({ id }) => id),
  );
}

/** All conversations, or one, as the JSON of a file. */
export async function exported(id) {
  const found = id === undefined ? await whole.values() : [signals.get(id)?.value ?? (await newest(id))];
  return JSON.stringify({ format: "tandem-conversations", version: 1, conversations: found }, null, 1);
}

/** Adds the conversations of such a file. Returns how many. */
export async function imported(text) {
  const { format, conversations } = JSON.parse(text);
  if (format !== "tandem-conversations") throw new Error("This is not a file that this page has exported.");
  for (const one of conversations) {
    await keep({ ...one, id: (await whole.get(one.id)) ? newId() : one.id });
  }
  tell(null);
  return conversations.length;
}

async function save(id) {
  saving.delete(id);
  const one = signals.get(id)?.value;
  if (!one || one.messages.length === 0) return;
  try {
    await keep(one);
    storageProblem.value = null;
    writeRemote(id, () => signals.get(id).value);
  } catch (error) {
    storageProblem.value = error;
  }
  tell(id);
}

async function keep(one) {
  await whole.set(one.id, one);
  await brief.set(one.id, { id: one.id, title: one.title, updated: one.updated });
}

/** The latest state of a conversation: the browser's, or the server's if another browser went on. */
async function newest(id) {
  const mine = await whole.get(id);
  if (remote === null) await readRemoteSummaries();
  if (!(remote?.get(id)?.updated > (mine?.updated ?? 0))) return mine;
  const found = await readRemote(id).catch(() => undefined);
  if (found) await keep(found);
  return found ?? mine;
}

/** Takes over what other browsers have done, and sends what a closed tab could not. */
async function readRemoteSummaries() {
  try {
    const found = await remoteSummaries();
    if (found === null) return;
    remote = new Map(found.data.map((one) => [one.id, one]));
    await Promise.all(found.deleted.filter((id) => !saving.has(id)).flatMap((id) => [whole.del(id), brief.del(id)]));
    for (const { id, updated } of await brief.values()) {
      const there = remote.get(id)?.updated;
      if (there < updated) writeRemote(id, () => signals.get(id)?.value ?? whole.get(id));
      if (there > updated && signals.get(id)?.value) signals.get(id).value = await newest(id);
    }
    readSummaries();
  } catch (problem) {
    remoteProblem.value = problem;
  }
}

function tell(id) {
  channel.postMessage(id);
  readSummaries();
}

async function readSummaries() {
  try {
    const mine = await brief.values();
    const known = new Set(mine.map(({ id }) => id));
    const others = [...(remote?.values() ?? [])].filter(({ id }) => !known.has(id));
    summaries.value = [...mine, ...others].sort((a, b) => b.updated - a.updated);
  } catch (error) {
    summaries.value = [];
    storageProblem.value = error;
  }
}

function titleOf(text) {
  const line = text.trim().split("\n")[0] || "Pictures";
  return line.length > 60 ? `${line.slice(0, 57).trimEnd()}…` : line;
}

async function until(condition) {
  while (!condition()) await new Promise((resolve) => setTimeout(resolve, 10));
}

// What was changed last must not be lost with the tab.
addEventListener("pagehide", () => {
  for (const [id, timer] of saving) {
    clearTimeout(timer);
    save(id);
  }
});
