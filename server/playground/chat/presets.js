// Presets: settings with names. Some are the operator's, which the server has; the browser keeps the
// reader's own.
import { operator } from "../lib/operator.js";
import { usePreference } from "../lib/preferences.js";
import { useSignal } from "../lib/signal.js";
import { NO_SETTINGS, read } from "./request.js";

/** `{ presets, isRead, own, setOwn, initial }` for a model: all presets that fit it, whether the
 * operator's are among them, the reader's own, and the settings that new chats begin with. */
export function usePresets(model) {
  const ofOperator = useSignal(operator);
  const [own, setOwn] = usePreference("chat.presets", {});
  const fits = ([, { models }]) => !models?.length || models.includes(model);
  const fitting = Object.entries(ofOperator?.presets ?? {}).filter(fits);
  const initial = settingsOf(fitting.find(([, preset]) => preset.default)?.[1] ?? {});
  const presets = { ...Object.fromEntries(fitting), ...own };
  return { presets, isRead: ofOperator !== null, own, setOwn, initial };
}

/** The settings of a preset. What is JSON in a file is text in the settings. */
export function settingsOf({ models, default: isDefault, ...preset }) {
  const asText = (value) => (typeof value === "string" ? value : JSON.stringify(value, null, 2));
  const { schema, tools, extra } = preset;
  const texts = Object.fromEntries(Object.entries({ schema, tools, extra }).filter(([, value]) => value).map(([name, value]) => [name, asText(value)]));
  return { ...NO_SETTINGS, ...preset, ...texts };
}

/** The presets of a file.
 * @throws an error that says what is wrong with it. */
export function presetsIn(text) {
  const presets = read(text, "The file");
  const isObject = (value) => typeof value === "object" && value !== null && !Array.isArray(value);
  if (!isObject(presets) || !Object.values(presets).every(isObject)) throw new Error("The file has no presets: a JSON object of objects by their names.");
  const known = new Set([...Object.keys(NO_SETTINGS), "models", "default"]);
  for (const [name, preset] of Object.entries(presets)) {
    const unknown = Object.keys(preset).find((field) => !known.has(field));
    if (unknown) throw new Error(`The preset ${name} has an unknown field: ${unknown}.`);
  }
  return presets;
}
