// The view for images: settings at the side, and the stage on which pictures appear.
import { html, useEffect, useRef, useState } from "../lib/dom.js";
import { day } from "../lib/format.js";
import { Icon } from "../lib/icons.js";
import { modelsOfKind, useModels } from "../lib/models.js";
import { go } from "../lib/route.js";
import { useSignal } from "../lib/signal.js";
import { ErrorNote, Menu } from "../lib/ui.js";
import { chosenModel, Form } from "./form.js";
import { clearHistory, history, readHistory } from "./history.js";
import { MaskView } from "./mask_view.js";
import { Outpaint } from "./outpaint.js";
import { boxOf, Choices } from "./parts.js";
import { urlOf } from "./pictures.js";
import { modeFor } from "./request.js";
import { Results, Working } from "./results.js";
import { work } from "./run.js";
import { drawNow, findUpscalers, input, mode, notes, open, pane, problem, set, settings, show, shown } from "./state.js";

const EXAMPLES = {
  "tandem-shapes": "a large red circle left of a small blue star on a white background",
};
const EXAMPLE = "a lighthouse on a cliff at dusk, oil on canvas";

export function View({ rest }) {
  const { models } = useModels();
  const { model: name } = useSignal(settings);
  const { drawing, model } = chosenModel(models, name);
  const adapters = modelsOfKind(models, "image").filter(({ parent }) => parent === model?.id);
  const kept = useSignal(history);
  const [isOver, setOver] = useState(false);
  useEffect(() => {
    const one = kept?.find(({ id }) => id === rest);
    if (one && !shown.value.pictures.includes(one)) show([one]);
  }, [rest, kept === null]);
  const over = (event) => {
    if (!event.dataTransfer?.types.includes("Files")) return;
    event.preventDefault();
    setOver(true);
  };
  const leave = (event) => event.currentTarget.contains(event.relatedTarget) || setOver(false);
  const take = (event, { files }) => {
    if (!files.length) return;
    event.preventDefault();
    setOver(false);
    open(files[0]);
  };
  return html`<div class="images" onDragOver=${over} onDragLeave=${leave} onDrop=${(event) => take(event, event.dataTransfer)} onPaste=${(event) => take(event, event.clipboardData)}>
    <h1 class="visually-hidden">Images</h1>
    ${model
      ? html`<${Form} card=${model.card} models=${drawing} adapters=${adapters} /><${Stage} card=${model.card} />`
      : html`<${NoModel} models=${models} />`}
    ${isOver && html`<div class="drop-here" aria-hidden="true"><${Icon} name="images" size=${28} />Drop the picture</div>`}
  </div>`;
}

function NoModel({ models }) {
  if (!models) return null;
  const coming = modelsOfKind(models, "image").find(({ state }) => state === "loading" || state === "downloading");
  return html`<div class="page"><p role="status">${coming
    ? `${coming.id} is being loaded. It can draw in a moment.`
    : html`No model that draws is loaded. Load one under <a href="#/models">Models</a>, or start the server with one.`}</p></div>`;
}

function Stage({ card }) {
  const running = useSignal(work);
  const source = useSignal(input);
  const part = useSignal(pane);
  const error = useSignal(problem);
  const sentences = useSignal(notes);
  const { pictures } = useSignal(shown);
  const { upscalers, canCutOut } = useTools(card);
  const now = source ? part : "results";
  const stage = useRef(null);
  useEffect(() => {
    if (running && stage.current.getBoundingClientRect().top > innerHeight / 3) stage.current.scrollIntoView({ block: "start" });
  }, [Boolean(running)]);
  return html`<section class="stage" ref=${stage} aria-label="Canvas">
    ${source && !running && html`<${Choices} label="Canvas shows" value=${now} onChange=${(next) => (pane.value = next)} options=${[["input", "Input"], ["results", "Result"]]} />`}
    ${error && html`<${ErrorNote} error=${error} />`}
    ${sentences.map((sentence) => html`<p class="note" role="status">${sentence}</p>`)}
    ${running
      ? html`<${Working} running=${running} />`
      : now === "input"
        ? html`<${Input} card=${card} source=${source} />`
        : pictures.length
          ? html`<${Results} card=${card} upscalers=${upscalers} canCutOut=${canCutOut} />`
          : html`<${Empty} card=${card} />`}
  </section>`;
}

/** What can enlarge and cut out, now or once a request has loaded it. */
function useTools(card) {
  const { models } = useModels();
  const [offered, setOffered] = useState([]);
  const served = (models ?? []).map(({ id }) => id).join();
  useEffect(() => {
    findUpscalers().then(setOffered, () => {}); // without them, the page offers less
  }, [served]);
  const isLoadedOnDemand = offered.some(({ scale }) => scale === null);
  const cutters = (models ?? []).some(({ kind }) => kind === "matting");
  return { upscalers: card.tasks.includes("restore") ? [...offered, { name: card.id, scale: null }] : offered, canCutOut: cutters || isLoadedOnDemand };
}

function Input({ card, source }) {
  const chosen = useSignal(mode);
  const { outpaint } = useSignal(settings);
  const how = modeFor(card, source, chosen);
  if (how?.id === "mask") return html`<${MaskView} source=${source} onSubmit=${() => drawNow(card)} />`;
  if (how?.id === "extend")
    return html`<${Outpaint} url=${urlOf(source.blob)} width=${source.width} height=${source.height} multiple=${card.size_multiple}
      value=${outpaint} onChange=${(sides) => set({ outpaint: sides })} />`;
  return html`<figure class="result"><div class="result-picture" style=${boxOf(source)}>
    <img src=${urlOf(source.blob)} alt="The input" width=${source.width} height=${source.height} />
  </div></figure>`;
}

function Empty({ card }) {
  const example = EXAMPLES[card.id] ?? EXAMPLE;
  const run = () => {
    set({ prompt: example });
    drawNow(card);
  };
  return html`<div class="empty">
    <${Icon} name="images" size=${40} />
    <p>Describe a picture, or drop one here. Dropping a picture that was drawn here restores its settings.</p>
    <button type="button" onClick=${run}>${example}</button>
  </div>`;
}

/** The history, under the navigation. */
export function Sidebar() {
  const pictures = useSignal(history);
  const { pictures: now, index } = useSignal(shown);
  const isShown = (one) => (index === null ? now.includes(one) : now[index] === one);
  useEffect(() => {
    readHistory();
  }, []);
  if (!pictures?.length) return null;
  const view = (one) => {
    if (now.includes(one)) show(now, now.indexOf(one));
    else show([one]);
    go("images", one.id);
  };
  const days = Map.groupBy(pictures, ({ time }) => day(time));
  return html`<div class="picture-history">
    <div class="history-head">
      <h2>History</h2>
      <${Menu} label="History" items=${[{ label: "Delete all pictures", icon: "trash", danger: true, run: clearHistory }]} />
    </div>
    ${[...days].map(([name, ones]) => html`<section key=${name}>
      <h3>${name}</h3>
      <ul>${ones.map((one) => html`<li key=${one.id}>
        <button type="button" aria-label=${one.fields?.prompt || one.label || "Picture"} aria-current=${isShown(one) ? "true" : undefined} onClick=${() => view(one)}>
          <img src=${one.thumbnail} alt="" loading="lazy" />
        </button>
      </li>`)}</ul>
    </section>`)}
  </div>`;
}
