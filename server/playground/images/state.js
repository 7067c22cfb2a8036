// What the view for images holds, and what its controls do with it.
import { call } from "../lib/api.js";
import { catalogue } from "../lib/models.js";
import { preference } from "../lib/preferences.js";
import { Signal } from "../lib/signal.js";
import { announce } from "../lib/ui.js";
import { readSettings } from "./file_settings.js";
import { keep } from "./history.js";
import { MaskLayer } from "./mask.js";
import { blobOf, dataUrl, loadPicture, thumbnail, urlOf } from "./pictures.js";
import { bodyOf, fieldsOf, fieldsOfOne, modeFor, randomSeed, settingsOf } from "./request.js";
import { ask, draw } from "./run.js";

/** The settings, by the names of the API. Those that are undefined are the model's. */
export const settings = new Signal(preference("images.settings", {}).value);
settings.watch((value) => (preference("images.settings", {}).value = value)); // other tabs keep theirs until they are loaded
/** The input: `{ blob, others, width, height, mask, wantsFocus }`, or null. `others` are pictures that an
 * instruction may also refer to. */
export const input = new Signal(null);
export const mode = preference("images.mode", null);
/** Results on show: `{ pictures, index }`; index is null for all of them side by side. */
export const shown = new Signal({ pictures: [], index: null });
/** Which part of the stage is on show: "input" or "results". */
export const pane = new Signal("results");
/** A sentence about what went wrong, or what is worth knowing. */
export const problem = new Signal(null);
export const notes = new Signal([]);
export const enlarging = preference("images.enlarge", { scale: 2 });

export function set(changes) {
  const next = { ...settings.value, ...changes };
  // Another model's files do not make the recorded picture, and need no warning.
  if (!("made_with" in changes) && ("model" in changes || "adapters" in changes)) delete next.made_with;
  settings.value = next;
}

export async function useAsInput(blob, wanted) {
  try {
    const picture = await loadPicture(blob);
    input.value = { blob, others: [], width: picture.width, height: picture.height, mask: new MaskLayer(picture.width, picture.height), wantsFocus: wanted === "mask" };
    set({ edit_size: undefined, outpaint: undefined });
    if (wanted) mode.value = wanted;
    pane.value = "input";
    problem.value = null;
  } catch (error) {
    problem.value = error;
  }
}

/** Takes more pictures for an instruction, up to `most` with the input. */
export async function addOthers(files, most) {
  try {
    await Promise.all([...files].map(loadPicture));
    input.value = { ...input.value, others: [...input.value.others, ...files].slice(0, most - 1) };
    problem.value = null;
  } catch (error) {
    problem.value = error;
  }
}

export function dropOther(blob) {
  input.value = { ...input.value, others: input.value.others.filter((one) => one !== blob) };
}

export function dropInput() {
  input.value = null;
  pane.value = "results";
}

/** Takes a picture that the reader chose: its settings, if its file has any, else as the input. */
export async function open(file) {
  try {
    const { body, warnings } = await readSettings(file);
    if (!body) return await useAsInput(file);
    await restore(body);
    notes.value = [...notes.value, ...warnings];
    const picture = await loadPicture(file);
    show([{ id: null, blob: file, width: picture.width, height: picture.height, label: "From its file", warnings: [] }]);
    announce("The settings of the picture are restored");
  } catch (error) {
    problem.value = error;
  }
}

/** Sets everything as the picture was drawn. */
export async function restore(body, files) {
  const { model, settings: found, mode: wanted } = settingsOf(body);
  settings.value = { ...found, model: model ?? settings.value.model };
  problem.value = null;
  notes.value = catalogue.value.models?.some(({ id }) => id === model) || !model ? [] : [`The picture was drawn by ${model}, which is not served here.`];
  mode.value = wanted ?? mode.value;
  if (!wanted) input.value = null;
  else if (files?.image) await restoreInput(files);
  else if (!input.value) notes.value = [...notes.value, "The picture was made from another one, which its file does not contain. Choose that one as the input."];
}

async function restoreInput({ image, others = [], mask }) {
  const wanted = settings.value;
  await useAsInput(image);
  settings.value = wanted;
  if (mask) await input.value?.mask.load(mask);
  input.value = input.value && { ...input.value, others };
  pane.value = "results";
}

export function show(pictures, index = pictures.length === 1 ? 0 : null) {
  shown.value = { pictures, index };
  problem.value = null;
  pane.value = "results";
}

/** Draws with the settings as they are. */
export function drawNow(card) {
  return alone(async (before) => {
    const chosen = modeFor(card, input.value, mode.value);
    const missing = chosen && missingFor(chosen);
    if (missing) return complain(missing);
    await drawWith(card, chosen, before);
  });
}

async function drawWith(card, chosen, before) {
  if (!settings.value.isSeedLocked || !settings.value.seed) set({ seed: randomSeed() });
  const { path, fields } = fieldsOf(settings.value, card, chosen);
  const files = chosen ? { image: input.value.blob } : {};
  if (chosen?.id === "instruct") files.others = input.value.others.slice(0, card.max_edit_images - 1);
  if (chosen?.id === "mask") files.mask = await input.value.mask.toBlob();
  const count = (fields.n ?? 1) * (Array.isArray(fields.loras?.[0]?.scale) ? fields.loras[0].scale.length : 1);
  const body = { ...(await bodyOf(fields, files)), partial_images: 3 };
  const pictures = [];
  show([]);
  const seconds = await draw("Drawing", path, body, Array(count).fill(null), (data, blob) => {
    const one = fieldsOfOne(fields, data.index);
    pictures[data.index] = { kind: chosen?.id ?? "draw", path, fields: one, files, blob, warnings: data.warnings };
  });
  const finished = pictures.filter(Boolean);
  if (finished.length) await finish(finished, seconds);
  else shown.value = before; // cancelled
}

function missingFor(chosen) {
  const { outpaint = {} } = settings.value;
  if (chosen.id === "mask" && input.value.mask.share === 0) return "Paint over the part of the picture that should change.";
  if (chosen.id === "extend" && !Object.values(outpaint).some(Boolean)) return "Drag an edge, or enter by how many pixels the picture grows.";
  return null;
}

function complain(sentence) {
  problem.value = new Error(sentence);
  pane.value = "input";
}

export async function enlarge(picture, { scale, model }) {
  const body = { image: await dataUrl(picture.blob), model, scale, heat_map: true, partial_images: 3 };
  await process(picture, "enlarge", (done) =>
    draw("Enlarging", "v1/images/upscale", body, [urlOf(picture.blob)], (data, blob) =>
      done(blob, {
        warnings: data.warnings,
        consistency: data.consistency,
        heatMap: data.heat_map && blobOf(data.heat_map),
        label: `Enlarged by ${data.model}`,
      }),
    ),
  );
}

export async function cutOut(picture) {
  const body = { image: await dataUrl(picture.blob) };
  await process(picture, "cutout", (done) =>
    ask("Cutting out", "v1/images/matte", body, [urlOf(picture.blob)], (data, blob) =>
      done(blob, { warnings: data.warnings, label: `Cut out by ${data.model}` }),
    ),
  );
}

function process(picture, kind, run) {
  return alone(async () => {
    let result = null;
    const prompt = picture.fields?.prompt ?? picture.prompt;
    const seconds = await run((blob, rest) => (result = { kind, blob, before: picture.blob, prompt, ...rest }));
    if (seconds !== null) await finish([result], seconds);
  });
}

let isBusy = false;

/** Runs one request at a time, and says what went wrong with it. */
async function alone(run) {
  if (isBusy) return;
  isBusy = true;
  problem.value = null;
  notes.value = [];
  const before = shown.value;
  try {
    await run(before);
  } catch (error) {
    shown.value = before;
    problem.value = error;
    announce(error.message);
  } finally {
    isBusy = false;
  }
}

/** Shows finished pictures and keeps them in the history. */
async function finish(pictures, seconds) {
  for (const one of pictures) {
    const decoded = await loadPicture(one.blob);
    Object.assign(one, { width: decoded.width, height: decoded.height, seconds, thumbnail: thumbnail(decoded) });
    one.before ??= one.files?.image;
    await keep(one);
  }
  show(pictures);
  notes.value = [...new Set(pictures.flatMap(({ warnings }) => warnings ?? []))];
  announce(pictures.length === 1 ? "The picture is done" : `${pictures.length} pictures are done`);
}

/** The models that enlarge, `{ name, scale }`: those that are served first. The others, whose scale
 * is null, are loaded by the first request. */
export async function findUpscalers() {
  const found = await call("sdapi/v1/upscalers");
  return found.sort((a, b) => (a.scale === null) - (b.scale === null)).map(({ name, scale }) => ({ name, scale }));
}
