// What a request says: the body from the settings of the view, and the settings from the body that
// a picture's file records. Settings have the names of the API.
import { BASE } from "../lib/api.js";
import { dataUrl } from "./pictures.js";

const MAX_RANDOM_SEED = 2 ** 32;
/** The server's own value of `feather`, in pixels. */
export const FEATHER = 4;

/** How an input picture is used: the task, its name here, and the settings that only it has. */
export const MODES = [
  { id: "redraw", task: "image_to_image", label: "Redraw", fields: ["strength"] },
  { id: "mask", task: "inpaint", label: "Mask", fields: ["strength", "feather", "soft_mask", "mask_content", "crop_to_mask", "crop_padding"] },
  { id: "extend", task: "inpaint", label: "Extend", fields: ["outpaint", "feather"] },
  { id: "instruct", task: "edit", label: "Instruct", fields: ["image_guidance_scale"] },
];

const COMMON = [
  "prompt", "n", "num_inference_steps", "guidance_scale", "scheduler", "guidance_rescale", "guidance_start",
  "guidance_end", "prompt_syntax", "clip_skip", "background", "output_format", "made_with",
];

/** The modes that a model has. */
export function modesOf(card) {
  return MODES.filter(({ task }) => card.tasks.includes(task));
}

/** The mode that is chosen, if the model has it, else its first one; null without an input. */
export function modeFor(card, source, chosen) {
  const modes = modesOf(card);
  return source ? (modes.find(({ id }) => id === chosen) ?? modes[0] ?? null) : null;
}

export function hasNegativePrompt(card) {
  return card.guidance === "classifier_free";
}

export function randomSeed() {
  return String(crypto.getRandomValues(new Uint32Array(1))[0] % MAX_RANDOM_SEED);
}

/** A seed as JSON: it may have more digits than a number of JavaScript holds. */
function seedValue(seed) {
  return JSON.rawJSON?.(seed) ?? Number(seed);
}

/** JSON of a file, with the seed as text. */
export function readBody(text) {
  return JSON.parse(text, (name, value, context) => (name === "seed" ? (context?.source ?? String(value)) : value));
}

/** The fields of a request without its pictures: `{ path, fields }`. `mode` is null without an
 * input. */
export function fieldsOf(settings, card, mode) {
  const names = [...COMMON, ...(mode ? mode.fields : ["hires"])];
  const fields = { model: card.id, ...settings.extra };
  for (const name of names) if (isGiven(settings[name])) fields[name] = settings[name];
  if (hasNegativePrompt(card) && settings.negative_prompt) fields.negative_prompt = settings.negative_prompt;
  const size = mode ? settings.edit_size : settings.size;
  if (size) fields.size = size;
  if (mode) fields.task = mode.task;
  const loras = lorasOf(settings);
  if (loras.length) fields.loras = loras;
  fields.prompt ??= "";
  fields.seed = settings.seed;
  return { path: `v1/images/${mode ? "edits" : "generations"}`, fields };
}

function isGiven(value) {
  return value !== undefined && value !== null && value !== "" && value !== false;
}

/** The adapters in use; with a sweep, those that have a second scale go through several. */
function lorasOf({ adapters = {}, sweep = 0 }) {
  return Object.entries(adapters).map(([name, { scale, to }]) => {
    if (!sweep) return { name, scale };
    const end = to ?? scale;
    return { name, scale: Array.from({ length: sweep }, (_, i) => rounded(scale + ((end - scale) * i) / Math.max(1, sweep - 1))) };
  });
}

function rounded(value) {
  return Math.round(value * 1000) / 1000;
}

/** Adds the pictures of a request to its fields: a body to send. */
export async function bodyOf(fields, { image, others = [], mask } = {}) {
  const body = { ...fields, seed: seedValue(fields.seed) };
  if (image) body.images = await Promise.all([image, ...others].map(async (one) => ({ image_url: await dataUrl(one) })));
  if (mask) Object.assign(body, { mask: { image_url: await dataUrl(mask) }, mask_mode: "luminance" });
  return body;
}

/** The fields that make image `index` of a request again, alone. */
export function fieldsOfOne(fields, index) {
  const perSetting = fields.n ?? 1;
  const one = { ...fields, seed: String(BigInt(fields.seed) + BigInt(index % perSetting)) };
  delete one.n;
  const setting = Math.floor(index / perSetting);
  if (fields.loras) one.loras = fields.loras.map(({ name, scale }) => ({ name, scale: Array.isArray(scale) ? scale[setting] : scale }));
  return one;
}

/** The settings that a body means, and its mode. */
export function settingsOf(body) {
  const { model, size, loras = [], negative_prompt, seed, task = "text_to_image", mask_mode, ...rest } = body;
  const settings = { adapters: Object.fromEntries(loras.map(({ name, scale }) => [name, { scale }])) };
  if (negative_prompt) settings.negative_prompt = negative_prompt;
  if (seed !== undefined) Object.assign(settings, { seed: String(seed), isSeedLocked: true });
  const mode = task === "inpaint" ? (rest.outpaint ? "extend" : "mask") : (MODES.find((one) => one.task === task)?.id ?? null);
  settings[mode ? "edit_size" : "size"] = size;
  const known = new Set([...COMMON, ...MODES.flatMap(({ fields }) => fields), "hires"]);
  const extra = Object.entries(rest).filter(([name]) => !known.has(name));
  for (const [name, value] of Object.entries(rest)) if (known.has(name)) settings[name] = value;
  if (extra.length) settings.extra = Object.fromEntries(extra);
  return { model, settings, mode };
}

/** The request as a line for a shell. */
export function asCurl(path, fields, { image, others = [], mask } = {}) {
  const url = new URL(path, BASE);
  const finish = ` \\\n  | jq -r '.data[0].b64_json' | base64 -d > out.png`;
  if (!image) return `curl -s ${url} -H 'Content-Type: application/json' \\\n  -d ${quoted(JSON.stringify(jsonable(fields), null, 1))}${finish}`;
  const parts = Object.entries(withMask(fields, mask)).map(([name, value]) => `-F ${quoted(`${name}=${typeof value === "object" ? JSON.stringify(value) : value}`)}`);
  const images = namesOf(others).map((name) => `-F 'image[]=@${name}'`);
  return [`curl -s ${url}`, ...images, ...(mask ? ["-F mask=@mask.png"] : []), ...parts].join(" \\\n  ") + finish;
}

/** The request in Python, with OpenAI's client. */
export function asPython(fields, { image, others = [], mask } = {}) {
  const { model, prompt, n, size, ...extra } = withMask(fields, mask);
  const own = Object.entries({ model, prompt, n, size }).filter(([, value]) => value !== undefined);
  const lines = [
    ...own.map(([name, value]) => `${name}=${JSON.stringify(value)}`),
    ...(image ? [`image=[${namesOf(others).map((name) => `Path("${name}")`).join(", ")}]`] : []),
    ...(mask ? ['mask=Path("mask.png")'] : []),
    `extra_body=${inPython(jsonable(extra))}`,
  ];
  return `import base64
from pathlib import Path

from openai import OpenAI

client = OpenAI(base_url="${new URL("v1", BASE)}", api_key="none")
answer = client.images.${image ? "edit" : "generate"}(
${lines.map((line) => `    ${line},\n`).join("")})
Path("out.png").write_bytes(base64.b64decode(answer.data[0].b64_json))
`;
}

/** Names for the files of an input and of the pictures beside it. */
function namesOf(others) {
  return ["in.png", ...others.map((_, i) => `in-${i + 2}.png`)];
}

function withMask(fields, mask) {
  return mask ? { ...fields, mask_mode: "luminance" } : fields;
}

function jsonable(fields) {
  return { ...fields, seed: seedValue(fields.seed) };
}

function quoted(text) {
  return `'${text.replaceAll("'", `'\\''`)}'`;
}

function inPython(value) {
  return JSON.stringify(value)
    .replace(/"(?:[^"\\]|\\.)*"|\b(?:true|false|null)\b/g, (part) => ({ true: "True", false: "False", null: "None" })[part] ?? part)
    .replace(/("(?:[^"\\]|\\.)*")([:,])/g, "$1$2 ")
    .replace(/([\d\]}e]),/g, "$1, ");
}
