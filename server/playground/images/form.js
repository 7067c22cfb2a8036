// The settings: what is drawn, with which model, and how.
import { html, useState } from "../lib/dom.js";
import { Icon } from "../lib/icons.js";
import { modelsOfKind } from "../lib/models.js";
import { usePreference } from "../lib/preferences.js";
import { useSignal } from "../lib/signal.js";
import { Field, IconButton, NumberField, Toggle } from "../lib/ui.js";
import { urlOf } from "./pictures.js";
import { Choices, FileButton } from "./parts.js";
import { FEATHER, hasNegativePrompt, modeFor, modesOf } from "./request.js";
import { work } from "./run.js";
import { addOthers, drawNow, dropInput, dropOther, input, mode, open, set, settings, useAsInput } from "./state.js";

const SHAPES = [
  ["Square", 1, 1],
  ["Landscape 4:3", 4, 3],
  ["Landscape 16:9", 16, 9],
  ["Portrait 3:4", 3, 4],
  ["Portrait 9:16", 9, 16],
];
const UPSCALERS = [
  ["latent", "Latents"],
  ["lanczos", "Picture"],
];
const HINTS = {
  redraw: "Redraws the picture, guided by the prompt.",
  mask: "Redraws only what you paint over. All other pixels stay unchanged.",
  extend: "Extends the picture. Its own pixels stay unchanged.",
  instruct: "The prompt says what to change.",
};

export function Form({ card, models, adapters }) {
  const now = useSignal(settings);
  const source = useSignal(input);
  const chosen = useSignal(mode);
  const modes = modesOf(card);
  const how = modeFor(card, source, chosen);
  const put = (name) => (value) => set({ [name]: value });
  const submit = (event) => {
    event.preventDefault();
    drawNow(card);
  };
  const enter = (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    drawNow(card);
  };
  return html`<form class="image-form" onSubmit=${submit} noValidate aria-label="Settings">
    <${Field} label=${how?.id === "instruct" ? "Instruction" : "Prompt"}>
      ${(id) => html`<textarea id=${id} class="prompt" rows="3" value=${now.prompt ?? ""} maxlength="4000" enterkeyhint="go"
        placeholder=${how?.id === "instruct" ? "make the circle green" : "What should it show?"}
        onInput=${(event) => set({ prompt: event.target.value })} onKeyDown=${enter}></textarea>`}
    </>
    ${hasNegativePrompt(card) && html`<${Field} label="Negative prompt">
      ${(id) => html`<input id=${id} value=${now.negative_prompt ?? ""} maxlength="4000" placeholder="What it should not show"
        onInput=${(event) => set({ negative_prompt: event.target.value })} />`}
    </>`}
    ${modes.length > 0 && html`<${Source} source=${source} modes=${modes} how=${how} most=${card.max_edit_images} />`}
    ${how && html`<${OfMode} how=${how} now=${now} put=${put} card=${card} />`}
    <${Field} label="Model">
      ${(id) => html`<select id=${id} value=${card.id} onChange=${(event) => set({ model: event.target.value, scheduler: undefined, size: undefined, adapters: {} })}>
        ${models.map((model) => html`<option value=${model.id}>${model.id}</option>`)}
      </select>`}
    </>
    <div class="pair">
      <${Size} card=${card} isInput=${Boolean(how)} now=${now} />
      <${Field} label="Pictures">
        ${(id) => html`<input id=${id} type="number" min="1" max="10" value=${now.n ?? 1} onChange=${(event) => set({ n: whole(event.target.value, 1, 10) })} />`}
      </>
    </div>
    <${Seed} now=${now} />
    ${adapters.length > 0 && html`<${Adapters} adapters=${adapters} now=${now} />`}
    <${More} card=${card} now=${now} put=${put} how=${how} />
    ${now.extra && html`<p class="hint extra">Also from the file: ${Object.keys(now.extra).join(", ")}
      <button type="button" class="quiet" onClick=${() => set({ extra: undefined })}>Leave out</button></p>`}
    <${Submit} />
  </form>`;
}

function Submit() {
  const running = useSignal(work);
  return html`<div class="submit">
    <button type="submit" class="primary" disabled=${running !== null}><${Icon} name="brush" />${running ? `${running.label}…` : "Draw"}</button>
  </div>`;
}

function Source({ source, modes, how, most }) {
  return html`<fieldset class="source">
    <legend>Input picture</legend>
    ${source
      ? html`<div class="source-picture">
          <img src=${urlOf(source.blob)} alt="The input" />
          <span>${source.width} × ${source.height}</span>
          <${FileButton} icon="upload" label="Choose another input" onFile=${(file) => useAsInput(file)} />
          <${IconButton} icon="close" label="Remove the input" onClick=${dropInput} />
        </div>
        <${Choices} label="What to do with the input" value=${how.id} onChange=${(id) => (mode.value = id)}
          options=${modes.map(({ id, label }) => [id, label])} />
        <p class="hint">${HINTS[how.id]}</p>
        ${how.id === "instruct" && most > 1 && html`<${Others} others=${source.others.slice(0, most - 1)} most=${most} />`}`
      : html`<${FileButton} icon="upload" label="Choose a picture. If its file records settings, they are restored" text="Choose a picture" class="wide" onFile=${open} />`}
  </fieldset>`;
}

/** The pictures besides the input that an instruction may refer to. */
function Others({ others, most }) {
  return html`
    ${others.length > 0 && html`<ul class="attached">${others.map((blob, i) => html`<li key=${urlOf(blob)}>
      <img src=${urlOf(blob)} alt=${`Picture ${i + 2}`} title=${`Picture ${i + 2}`} />
      <${IconButton} icon="close" size=${13} label=${`Remove picture ${i + 2}`} onClick=${() => dropOther(blob)} />
    </li>`)}</ul>`}
    ${others.length + 1 < most && html`<${FileButton} icon="plus" label=${`Add pictures, up to ${most} with the input`} text="Add pictures" class="wide" onFiles=${(files) => addOthers(files, most)} />`}
    <p class="hint">The instruction can use up to ${most} pictures together: the input is picture 1, the next one picture 2.</p>`;
}

function OfMode({ how, now, put, card }) {
  const has = (name) => how.fields.includes(name);
  const isMask = how.id === "mask";
  return html`
    ${isMask && html`<p class="hint">Describe the whole picture, including what should appear under the mask.</p>`}
    ${has("strength") && html`<${NumberField} label="Strength" value=${now.strength} onChange=${put("strength")} min=${0} max=${1} step=${0.05}
      fallback=${isMask ? 1 : 0.8} hint=${isMask ? "Below 1, what is under the mask shows through." : "How much changes; 1 keeps nothing."} />`}
    ${has("feather") && html`<${NumberField} label="Feather, in pixels" value=${now.feather} onChange=${put("feather")} min=${0} max=${64} step=${1} fallback=${FEATHER} />`}
    ${has("image_guidance_scale") && card.guidance === "classifier_free" && html`<${NumberField} label="Keep to the input" value=${now.image_guidance_scale}
      onChange=${put("image_guidance_scale")} min=${1} max=${5} step=${0.1} fallback=${1.5} />`}
    ${isMask && html`<${Toggle} label="Zoom in on the mask" hint="Draws only the part around the mask, at full size." value=${now.crop_to_mask ?? false} onChange=${put("crop_to_mask")} />
      ${now.crop_to_mask && html`<${NumberField} label="Surroundings, in pixels" value=${now.crop_padding} onChange=${put("crop_padding")} min=${0} max=${256} step=${8} fallback=${32} />`}
      <${Toggle} label="Use the mask's grey levels" hint="The mask's soft edges say how much may change." value=${now.soft_mask ?? false} onChange=${put("soft_mask")} />
      ${(now.strength ?? 1) < 1 && html`<${Toggle} label="Fill with the surroundings first" hint="Helps to remove an object."
        value=${now.mask_content === "fill"} onChange=${(on) => set({ mask_content: on ? "fill" : undefined })} />`}`}
  `;
}

function Size({ card, isInput, now }) {
  const name = isInput ? "edit_size" : "size";
  const value = now[name] ?? "";
  const sizes = sizesOf(card);
  const [isCustom, setCustom] = useState(false);
  const isOther = value !== "" && !sizes.some(([, size]) => size === value);
  const choose = (event) => {
    setCustom(event.target.value === "custom");
    set({ [name]: event.target.value === "custom" ? value || card.default_size : event.target.value || undefined });
  };
  const [width, height] = (value || card.default_size).split("x").map(Number);
  const side = (label, pixels, change) => html`<input type="number" aria-label=${label} min=${card.min_side} step=${card.size_multiple} value=${pixels} onChange=${change} />`;
  return html`<${Field} label="Size">
    ${(id) => html`<select id=${id} value=${isCustom || isOther ? "custom" : value} onChange=${choose}>
        <option value="">${isInput ? "As the input" : `${card.default_size.replace("x", " × ")}`}</option>
        ${sizes.filter(([, size]) => isInput || size !== card.default_size).map(([label, size]) => html`<option value=${size}>${label}, ${size.replace("x", " × ")}</option>`)}
        <option value="custom">Other…</option>
      </select>
      ${(isCustom || isOther) && html`<span class="sides">
        ${side("Width", width, (event) => set({ [name]: `${event.target.value}x${height}` }))} ×
        ${side("Height", height, (event) => set({ [name]: `${width}x${event.target.value}` }))}
      </span>`}`}
  </>`;
}

/** Common shapes with about as many pixels as the model's own size. */
function sizesOf({ default_size: own, size_multiple: multiple, max_pixels: most, min_side: least }) {
  const [width, height] = own.split("x").map(Number);
  return SHAPES.map(([label, across, down]) => {
    const unit = Math.sqrt((width * height) / (across * down));
    const [w, h] = [across, down].map((share) => Math.max(least, Math.floor((share * unit) / multiple + 0.25) * multiple));
    return [label, `${w}x${h}`, w * h];
  }).filter(([, , pixels]) => pixels <= most);
}

function Seed({ now }) {
  const change = (event) => {
    const seed = event.target.value.replace(/\D/g, "").slice(0, 19);
    event.target.value = seed;
    set({ seed, isSeedLocked: seed !== "" });
  };
  const label = now.isSeedLocked ? "The seed is kept; draw with a new one each time" : "A new seed each time; keep this one";
  return html`<${Field} label="Seed">
    ${(id) => html`<div class="seed">
      <input id=${id} inputmode="numeric" value=${now.seed ?? ""} placeholder="random" onInput=${change} class=${now.isSeedLocked ? "" : "is-unlocked"} />
      <${IconButton} icon=${now.isSeedLocked ? "lock" : "unlock"} label=${label} aria-pressed=${Boolean(now.isSeedLocked)}
        onClick=${() => set({ isSeedLocked: !now.isSeedLocked })} />
    </div>`}
  </>`;
}

function Adapters({ adapters, now }) {
  const used = now.adapters ?? {};
  const put = (name, changes) => set({ adapters: { ...used, [name]: { ...used[name], ...changes } } });
  const toggle = (name) => (isOn) => {
    const { [name]: _, ...others } = used;
    set({ adapters: isOn ? { ...used, [name]: { scale: 1 } } : others });
  };
  return html`<fieldset class="adapters">
    <legend>Adapters</legend>
    ${adapters.map(({ id: name }) => html`<div class="adapter" key=${name}>
      <${Toggle} label=${name} value=${name in used} onChange=${toggle(name)} />
      ${name in used && html`<${NumberField} label=${now.sweep ? `${name}: from` : `${name}: scale`} value=${used[name].scale} onChange=${(scale = 1) => put(name, { scale })} min=${-2} max=${2} step=${0.05} />
        ${now.sweep > 0 && html`<${NumberField} label=${`${name}: to`} value=${used[name].to} onChange=${(to) => put(name, { to })} min=${-2} max=${2} step=${0.05} fallback=${used[name].scale} />`}`}
    </div>`)}
    ${Object.keys(used).length > 0 && html`<${Toggle} label="Sweep" hint="Draws the same seed with several scales." value=${now.sweep > 0} onChange=${(on) => set({ sweep: on ? 3 : 0 })} />
      ${now.sweep > 0 && html`<${NumberField} label="Scales" value=${now.sweep} onChange=${(sweep) => set({ sweep: sweep ?? 3 })} min=${2} max=${10} step=${1} />`}`}
  </fieldset>`;
}

function More({ card, now, put, how }) {
  const [isOpen, setOpen] = usePreference("images.more", false);
  const isGuided = card.guidance !== "none";
  const hires = now.hires;
  const guidance = how?.id === "instruct" ? card.default_edit_guidance_scale : card.default_guidance_scale;
  return html`<details class="more" open=${isOpen} onToggle=${(event) => setOpen(event.currentTarget.open)}>
    <summary>More settings</summary>
    <div class="more-fields">
      <${NumberField} label="Steps" value=${now.num_inference_steps} onChange=${put("num_inference_steps")} min=${1} max=${100} step=${1} fallback=${card.default_steps} />
      ${isGuided && html`<${NumberField} label="Guidance" value=${now.guidance_scale} onChange=${put("guidance_scale")} min=${1} max=${15} step=${0.1} fallback=${guidance} />`}
      <${Pick} label="Scheduler" value=${now.scheduler ?? ""} onChange=${(scheduler) => set({ scheduler: scheduler || undefined })}
        options=${[["", `${card.default_scheduler} (the model's)`], ...card.schedulers.filter((name) => name !== card.default_scheduler).map((name) => [name, name])]} />
      ${!how && html`<${Toggle} label="Second, larger pass" value=${Boolean(hires)} onChange=${(on) => set({ hires: on ? { scale: 2, strength: 0.7 } : undefined })} />`}
      ${!how && hires && html`
        <${NumberField} label="Enlargement factor" value=${hires.scale} onChange=${(scale = 2) => set({ hires: { ...hires, scale, size: undefined } })} min=${1} max=${4} step=${0.25} fallback=${2} />
        <${NumberField} label="Strength of the second pass" value=${hires.strength} onChange=${(strength = 0.7) => set({ hires: { ...hires, strength } })} min=${0} max=${1} step=${0.05} fallback=${0.7} />
        <${Pick} label="What is enlarged" value=${hires.upscaler ?? "latent"} onChange=${(upscaler) => set({ hires: { ...hires, upscaler } })} options=${UPSCALERS} />`}
      ${isGuided && html`
        <${NumberField} label="Guidance begins after" value=${now.guidance_start} onChange=${put("guidance_start")} min=${0} max=${1} step=${0.05} fallback=${0} />
        <${NumberField} label="Guidance ends after" value=${now.guidance_end} onChange=${put("guidance_end")} min=${0} max=${1} step=${0.05} fallback=${1} />
        <${NumberField} label="Rescale guidance" value=${now.guidance_rescale} onChange=${put("guidance_rescale")} min=${0} max=${1} step=${0.05} fallback=${0} />`}
      <${Pick} label="Weights in prompts" value=${now.prompt_syntax ?? "plain"} onChange=${put("prompt_syntax")}
        options=${[["plain", "none"], ["a1111", "(red:1.3), as in A1111"], ["comfy", "(red:1.3), as in ComfyUI"], ["compel", "red++, as in Compel"]]} />
      <${NumberField} label="Skip layers of CLIP" value=${now.clip_skip} onChange=${put("clip_skip")} min=${0} max=${11} step=${1} fallback=${0} />
      <${Toggle} label="Transparent background" value=${now.background === "transparent"} onChange=${(on) => set({ background: on ? "transparent" : undefined })} />
      <${Pick} label="File" value=${now.output_format ?? "png"} onChange=${put("output_format")} options=${[["png", "PNG"], ["jpeg", "JPEG"], ["webp", "WebP"]]} />
      <button type="button" class="quiet" onClick=${() => (settings.value = { model: card.id, prompt: now.prompt })}>Reset to the model's settings</button>
    </div>
  </details>`;
}

function Pick({ label, value, onChange, options }) {
  return html`<${Field} label=${label}>
    ${(id) => html`<select id=${id} value=${value} onChange=${(event) => onChange(event.target.value)}>
      ${options.map(([option, text]) => html`<option value=${option}>${text}</option>`)}
    </select>`}
  </>`;
}

function whole(text, least, most) {
  return Math.min(most, Math.max(least, Math.round(Number(text)) || least));
}

/** The model that is chosen, among those that draw; null if there is none. */
export function chosenModel(models, name) {
  const drawing = modelsOfKind(models, "image").filter(({ card, parent }) => card?.schedulers && !parent);
  return { drawing, model: drawing.find(({ id }) => id === name) ?? drawing[0] ?? null };
}
