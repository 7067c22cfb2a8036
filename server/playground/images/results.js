// The stage: pictures while they are drawn, and what can be done with finished ones.
import { html, useState } from "../lib/dom.js";
import { saveFile } from "../lib/files.js";
import { percent, seconds } from "../lib/format.js";
import { Icon } from "../lib/icons.js";
import { useSignal } from "../lib/signal.js";
import { copyText, Menu } from "../lib/ui.js";
import { Compare } from "./compare.js";
import { drop } from "./history.js";
import { boxOf, Choices } from "./parts.js";
import { urlOf } from "./pictures.js";
import { asCurl, asPython, modesOf } from "./request.js";
import { work } from "./run.js";
import { cutOut, enlarge, enlarging, restore, show, shown, useAsInput } from "./state.js";

export function Working({ running }) {
  const { label, note, progress, previews, cancel } = running;
  return html`<div class="working">
    ${previews.length === 1
      ? html`<${Preview} src=${previews[0]} />`
      : html`<div class="grid is-${Math.min(previews.length, 4)}">
        ${previews.map((src, i) => html`<div class="tile">${src ? html`<img src=${src} alt=${`Preview ${i + 1}`} />` : html`<span class="waiting"></span>`}</div>`)}
      </div>`}
    <div class="progress">
      <span>${label}</span>
      <progress max="1" value=${progress} aria-label=${label}></progress>
      <span class="hint">${note ?? percent(progress)}</span>
      <button type="button" onClick=${cancel}><${Icon} name="stop" size=${16} />Cancel</button>
    </div>
  </div>`;
}

/** The preview of a single picture, as large as the finished one will be. */
function Preview({ src }) {
  const [size, setSize] = useState(null);
  const measure = ({ target }) => setSize({ width: target.naturalWidth, height: target.naturalHeight });
  return html`<div class="result-picture" style=${size ? boxOf(size) : undefined}>
    ${src ? html`<img src=${src} alt="Preview 1" onLoad=${measure} />` : html`<span class="waiting"></span>`}
  </div>`;
}

export function Results({ card, upscalers, canCutOut }) {
  const { pictures, index } = useSignal(shown);
  if (index === null)
    return html`<div class="grid is-${Math.min(pictures.length, 4)}">
      ${pictures.map((one, i) => html`<button type="button" class="tile" key=${one.id} onClick=${() => show(pictures, i)} aria-label=${`Picture ${i + 1}, seed ${one.fields.seed}`}>
        <img src=${urlOf(one.blob)} alt="" />
        <span class="tile-name">${nameOf(one)}</span>
      </button>`)}
    </div>`;
  const picture = pictures[index];
  return html`<${Result} key=${picture.id} picture=${picture} card=${card} upscalers=${upscalers} canCutOut=${canCutOut}>
    ${pictures.length > 1 && html`<button type="button" class="quiet" onClick=${() => show(pictures, null)}><${Icon} name="previous" size=${16} />All ${pictures.length}</button>`}
  </>`;
}

function Result({ picture, card, upscalers, canCutOut, children }) {
  const [look, setLook] = useState("after");
  const looks = [["after", "Result"], picture.before && ["compare", "Before and after"], picture.heatMap && ["map", "Heat map"]].filter(Boolean);
  const prompt = picture.fields?.prompt || picture.prompt;
  const alt = prompt || picture.label || "The picture";
  const size = { width: picture.width, height: picture.height };
  return html`<figure class="result">
    <div class="result-picture" style=${boxOf(picture)}>
      ${look === "compare"
        ? html`<${Compare} before=${urlOf(picture.before)} after=${urlOf(picture.blob)} alt=${alt} ...${size} />`
        : html`<img src=${urlOf(look === "map" ? picture.heatMap : picture.blob)} alt=${look === "map" ? "Heat map of the added detail" : alt} ...${size} />`}
    </div>
    <figcaption>
      <div class="result-line">
        ${children}
        ${looks.length > 1 && html`<${Choices} label="Result shows" options=${looks} value=${look} onChange=${setLook} />`}
        <span class="facts">${factsOf(picture)}</span>
      </div>
      ${look === "map" && html`<p class="hint">Blue: detail that nothing in the smaller picture confirms. Red: where the result contradicts it.</p>`}
      ${prompt && html`<p class="result-prompt">${prompt}</p>`}
      <${Actions} picture=${picture} card=${card} upscalers=${upscalers} canCutOut=${canCutOut} />
    </figcaption>
  </figure>`;
}

function Actions({ picture, card, upscalers, canCutOut }) {
  const isBusy = useSignal(work) !== null;
  const chosen = useSignal(enlarging);
  const modes = modesOf(card);
  const ways = upscalers.flatMap(({ name, scale: most }) => [2, 4].filter((scale) => scale <= (most ?? 4)).map((scale) => ({ scale, model: name })));
  const option = ways.find(({ scale, model }) => scale === chosen.scale && model === chosen.model) ?? ways[0];
  const enlargeBy = (way) => {
    enlarging.value = way;
    enlarge(picture, way);
  };
  const remove = async () => {
    await drop(picture);
    show([], null);
  };
  return html`<div class="result-actions">
    <button type="button" onClick=${() => saveFile(fileName(picture), picture.blob)}><${Icon} name="download" size=${16} />Download</button>
    ${modes.length > 0 && html`<button type="button" onClick=${() => useAsInput(picture.blob)}><${Icon} name="input" size=${16} />Use as input</button>`}
    ${modes.some(({ id }) => id === "mask") && html`<button type="button" onClick=${() => useAsInput(picture.blob, "mask")}><${Icon} name="brush" size=${16} />Mask</button>`}
    ${option && html`<span class="joined">
      <button type="button" disabled=${isBusy} title=${`${option.scale}× by ${option.model}`} onClick=${() => enlarge(picture, option)}><${Icon} name="enlarge" size=${16} />Enlarge</button>
      <${Menu} label="How to enlarge" icon="down" items=${ways.map((way) => ({ label: `${way.scale}× by ${way.model}`, icon: "enlarge", run: () => enlargeBy(way) }))} />
    </span>`}
    ${canCutOut && html`<button type="button" disabled=${isBusy} onClick=${() => cutOut(picture)}><${Icon} name="cutout" size=${16} />Cut out</button>`}
    <${Menu} label="More" items=${[
      picture.fields && { label: "Copy as curl", icon: "copy", run: () => copyText(asCurl(picture.path, picture.fields, picture.files)) },
      picture.fields && { label: "Copy as Python", icon: "copy", run: () => copyText(asPython(picture.fields, picture.files)) },
      picture.fields && { label: "Restore its settings", icon: "tune", run: () => restore(picture.fields, picture.files) },
      picture.id && { label: "Delete", icon: "trash", danger: true, run: remove },
    ]} />
  </div>`;
}

function factsOf({ width, height, fields, consistency, seconds: took, label }) {
  return [
    label,
    fields && `Seed ${fields.seed}`,
    `${width} × ${height}`,
    took && seconds(took),
    consistency && `Consistency ${consistency.psnr_db.toFixed(1)} dB, ${percent(consistency.share_changed)} of pixels changed`,
  ].filter(Boolean).map((fact) => html`<span>${fact}</span>`);
}

function nameOf({ fields }) {
  const scales = (fields.loras ?? []).map(({ name, scale }) => `${name} ${scale}`);
  return [`Seed ${fields.seed}`, ...scales].join(" · ");
}

function fileName({ fields, kind, blob }) {
  const what = (fields?.prompt ?? "").toLowerCase().replace(/[^a-z0-9]+/g, "-").slice(0, 40).replace(/^-|-$/g, "");
  return `${[what || kind || "image", fields?.seed].filter(Boolean).join("-")}.${blob.type.split("/")[1] ?? "png"}`;
}
