// The chat: the conversation on show, with its settings beside it.
import { html, useEffect, useMemo, useState } from "../lib/dom.js";
import { modelsOfKind, useModels } from "../lib/models.js";
import { usePreference } from "../lib/preferences.js";
import { go } from "../lib/route.js";
import { Signal, useSignal } from "../lib/signal.js";
import { ErrorNote, IconButton } from "../lib/ui.js";
import { say } from "./actions.js";
import { begin, change, conversation, shownPath, storageProblem } from "./conversations.js";
import { Composer } from "./composer.js";
import { Panel } from "./panel.js";
import { usePresets } from "./presets.js";
import { remoteProblem } from "./remote.js";
import { NO_SETTINGS } from "./request.js";
import { runs } from "./run.js";
import { Thread } from "./thread.js";

export { Sidebar } from "./sidebar.js";

const NONE = new Signal(null);
const COVERED_PX = 1000;

export function View({ rest: shownId, active }) {
  const one = useSignal(shownId ? conversation(shownId) : NONE);
  const { models } = useModels();
  const texts = useMemo(() => modelsOfKind(models, "text"), [models]);
  const [preferred, setPreferred] = usePreference("chat.model", null);
  const [defaults, setDefaults] = usePreference("chat.defaults", {});
  const [draft, setDraft] = useState(null);
  const [isOpen, setOpen] = usePanel();
  const [rival, setRival] = useState(null);
  const model = one?.model ?? texts.find(({ id }) => id === preferred)?.id ?? texts[0]?.id ?? null;
  const { initial, isRead } = usePresets(model);
  const settings = { ...NO_SETTINGS, ...(one?.settings ?? draft ?? defaults[model] ?? initial) };
  const card = texts.find((text) => text.id === model)?.card ?? null;
  useEffect(() => setDraft(null), [shownId]);
  if (one === undefined) return html`<div class="chat"></div>`;
  if (shownId && one === null) return html`<${Missing} />`;

  const chooseModel = (name) => {
    setPreferred(name);
    if (one) change(shownId, () => ({ model: name }));
  };
  const set = (fields) => {
    const next = { ...settings, ...fields };
    if (one) change(shownId, () => ({ settings: next }));
    else setDraft(next);
  };
  const send = (text, images) => {
    const target = one ? shownId : begin({ model, settings });
    say(target, text, images, rival ? [model, rival] : [model]);
    if (!one) go("chat", target);
  };
  return html`<div class="chat ${isOpen ? "has-panel" : ""}">
    <section class="chat-main" aria-label="Conversation">
      <header class="chat-head">
        <h1 class="visually-hidden">${one?.title || "New chat"}</h1>
        <${ModelSelect} label="Model" models=${texts} value=${model} onChange=${chooseModel} />
        ${rival !== null && html`<span class="versus">and</span>
          <${ModelSelect} label="Second model" models=${texts} value=${rival} onChange=${setRival} />`}
        <span class="spacer"></span>
        <${IconButton} icon="compare" label=${rival === null ? "Compare with a second model" : "Stop comparing"} aria-pressed=${rival !== null}
          disabled=${texts.length === 0} onClick=${() => setRival(rival === null ? (texts.find(({ id }) => id !== model)?.id ?? model) : null)} />
        <${IconButton} icon="tune" label="Settings" aria-pressed=${isOpen} aria-expanded=${isOpen} onClick=${() => setOpen(!isOpen)} />
      </header>
      <${StorageProblem} />
      <${Thread} id=${shownId} one=${one} model=${model} models=${texts} onAsk=${send} />
      <${Composer} key=${shownId} id=${shownId} isReady=${model !== null && isRead} takesPictures=${card?.input_modalities?.includes("image") ?? false}
        running=${one ? running(one) : []} onSend=${send} active=${active} />
    </section>
    ${isOpen && html`<${Panel} settings=${settings} card=${card} model=${model} initial=${initial} onChange=${set} onClose=${() => setOpen(false)}
      isDefault=${JSON.stringify(defaults[model] ?? initial) === JSON.stringify(settings)}
      onMakeDefault=${() => setDefaults({ ...defaults, [model]: settings })} />`}
  </div>`;
}

/** Whether the settings are on show. They stay so, except where they would cover the chat. */
function usePanel() {
  const [isKept, keep] = usePreference("chat.panel", false);
  const [isOpen, setOpen] = useState(isKept && innerWidth > COVERED_PX);
  const set = (value) => {
    keep(value);
    setOpen(value);
  };
  return [isOpen, set];
}

/** The runs that write the end of the conversation now. */
function running(one) {
  const last = shownPath(one).at(-1);
  return one.messages
    .filter(({ id, pair }) => id === last?.id || (pair && pair === last?.pair))
    .map(({ id }) => runs.get(id))
    .filter((run) => run && !run.isEnded);
}

function ModelSelect({ label, models, value, onChange }) {
  const isKnown = models.some(({ id }) => id === value);
  return html`<select class="model-select" aria-label=${label} value=${value ?? ""} onChange=${(event) => onChange(event.target.value)} disabled=${models.length === 0}>
    ${models.length === 0 && html`<option value="">No text model yet</option>`}
    ${value && !isKnown && html`<option value=${value}>${value} (not served)</option>`}
    ${models.map(({ id, state }) => html`<option value=${id}>${id}${state === "loaded" ? "" : ` (${state})`}</option>`)}
  </select>`;
}

function Missing() {
  return html`<div class="page"><h1>Not found</h1>
    <p>This browser has no such conversation. <a href="#/chat">Start a new one.</a></p>
  </div>`;
}

function StorageProblem() {
  const local = useSignal(storageProblem);
  const remote = useSignal(remoteProblem);
  const message = local
    ? `This browser does not keep conversations: ${local.message}. Export what you want to keep.`
    : remote && `The server's copies of conversations cannot be reached, this browser keeps its own: ${remote.message}`;
  return message && html`<${ErrorNote} error=${{ message }} />`;
}
