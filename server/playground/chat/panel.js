// The settings of a conversation: system prompt, samplers, the form of the answer, presets.
import { html, useEffect, useRef, useState } from "../lib/dom.js";
import { saveFile } from "../lib/files.js";
import { Dialog, Field, IconButton, Menu, NumberField, Toggle } from "../lib/ui.js";
import { comparer } from "./grounds.js";
import { presetsIn, settingsOf, usePresets } from "./presets.js";
import { read } from "./request.js";

const SAMPLERS = [
  { name: "temperature", label: "Temperature", min: 0, max: 2, step: 0.05, fallback: 1, hint: "Higher is more varied; 0 always takes the likeliest token." },
  { name: "top_p", label: "Top p", min: 0, max: 1, step: 0.01, fallback: 1 },
  { name: "top_k", label: "Top k", min: 0, max: 200, step: 1, fallback: 0, hint: "0 keeps all tokens." },
  { name: "min_p", label: "Min p", min: 0, max: 1, step: 0.01, fallback: 0 },
  { name: "repetition_penalty", label: "Repetition penalty", min: 0.8, max: 2, step: 0.01, fallback: 1 },
];
const EFFORTS = ["none", "low", "medium", "high"];

export function Panel({ settings, card, model, initial, onChange, onClose, isDefault, onMakeDefault }) {
  const sample = (name) => (value) => {
    const { [name]: _, ...others } = settings.sampling;
    onChange({ sampling: value === undefined ? others : { ...others, [name]: value } });
  };
  const whole = (name) => (event) => sample(name)(event.target.value === "" ? undefined : Math.trunc(Number(event.target.value)));
  return html`<aside class="panel" aria-label="Settings" onKeyDown=${(event) => event.key === "Escape" && onClose()}>
    <header><h2>Settings</h2><span class="spacer"></span>
      <${Presets} model=${model} settings=${settings} onChange=${onChange} />
      <${IconButton} icon="close" label="Close the settings" onClick=${onClose} />
    </header>
    <${TextField} label="System prompt" rows=${4} value=${settings.system} onChange=${(system) => onChange({ system })} />
    <${Toggle} label="Raw completion" value=${settings.isRaw} onChange=${(isRaw) => onChange({ isRaw })}
      hint="The model continues your text as it is, without a chat template, a system prompt or tools." />
    <${Toggle} label="Show probabilities" value=${settings.showsTokens} onChange=${(showsTokens) => onChange({ showsTokens })}
      hint="Colours each token by its probability. Click a token to see the alternatives and to continue from one of them." />
    ${comparer() && html`<${Toggle} label="Compare answers with the conversation" value=${settings.showsGrounds} onChange=${(showsGrounds) => onChange({ showsGrounds })}
      hint="Lists the sentences that nothing in the system prompt and your messages supports. Put your source texts there." />`}
    ${SAMPLERS.map(({ name, fallback, ...field }) => html`<${NumberField} key=${name} ...${field} value=${settings.sampling[name]}
      fallback=${card?.default_sampling?.[name] ?? fallback} onChange=${sample(name)} />`)}
    <div class="two">
      <${Field} label="Most tokens">${(id) => html`<input id=${id} type="number" min="1" placeholder="no limit" value=${settings.sampling.max_tokens ?? ""} onInput=${whole("max_tokens")} />`}</>
      <${Field} label="Seed">${(id) => html`<input id=${id} type="number" placeholder="random" value=${settings.sampling.seed ?? ""} onInput=${whole("seed")} />`}</>
    </div>
    <${Field} label="Reasoning">${(id) => html`<select id=${id} value=${settings.effort} onChange=${(event) => onChange({ effort: event.target.value })}>
      <option value="">the model's default</option>${EFFORTS.map((effort) => html`<option value=${effort}>${effort}</option>`)}
    </select>`}</>
    <${JsonField} label="JSON schema of the answer" value=${settings.schema} onChange=${(schema) => onChange({ schema })}
      placeholder='{"type": "object", "properties": {"city": {"type": "string"}}}' />
    <${JsonField} label="Tools" value=${settings.tools} onChange=${(tools) => onChange({ tools })}
      placeholder='[{"name": "get_weather", "parameters": {"type": "object"}}]' />
    <${JsonField} label="Other fields of the request" value=${settings.extra} onChange=${(extra) => onChange({ extra })}
      placeholder='{"stop": ["END"], "xtc_probability": 0.5}' />
    <div class="actions">
      <button type="button" class="quiet" onClick=${() => onChange(initial)}>Reset</button>
      <button type="button" disabled=${isDefault || !model} onClick=${onMakeDefault}>Use for new chats with this model</button>
    </div>
  </aside>`;
}

function TextField({ label, value, rows, placeholder, onChange, problem, mono }) {
  return html`<${Field} label=${label} hint=${problem}>
    ${(id) => html`<textarea id=${id} rows=${rows} class=${mono ? "mono" : ""} value=${value} placeholder=${placeholder} spellcheck=${!mono}
      aria-invalid=${Boolean(problem)} onInput=${(event) => onChange(event.target.value)}></textarea>`}
  </>`;
}

function JsonField({ label, ...rest }) {
  let problem = "";
  try {
    if (rest.value.trim()) read(rest.value, "This");
  } catch (error) {
    problem = error.message;
  }
  return html`<${TextField} label=${label} rows=${3} mono problem=${problem} ...${rest} />`;
}

/** Named settings, which travel as a JSON file. */
function Presets({ model, settings, onChange }) {
  const { presets, own, setOwn } = usePresets(model);
  const [isNaming, setNaming] = useState(false);
  const [problem, setProblem] = useState("");
  const picker = useRef(null);
  const load = async (event) => {
    const [file] = event.target.files;
    event.target.value = "";
    try {
      setOwn({ ...own, ...presetsIn(await file.text()) });
    } catch (error) {
      setProblem(error.message);
    }
  };
  const keep = (name) => {
    setNaming(false);
    if (name) setOwn({ ...own, [name]: settings });
  };
  const without = (name) => Object.fromEntries(Object.entries(own).filter(([other]) => other !== name));
  return html`${isNaming && html`<${NameField} onDone=${keep} />`}
    <input type="file" accept="application/json" hidden ref=${picker} onChange=${load} />
    <${Menu} label="Presets" icon="more" items=${[
      ...Object.entries(presets).map(([name, kept]) => ({ label: name, icon: "check", run: () => onChange(settingsOf(kept)) })),
      { label: "Save as a preset", icon: "plus", run: () => setNaming(true) },
      Object.keys(presets).length > 0 && { label: "Export the presets", icon: "download", run: () => saveFile("tandem-presets.json", JSON.stringify(presets, null, 2)) },
      { label: "Import presets", icon: "upload", run: () => picker.current.click() },
      ...Object.keys(own).map((name) => ({ label: `Delete “${name}”`, icon: "trash", danger: true, run: () => setOwn(without(name)) })),
    ]} />
    ${problem && html`<${Dialog} title="This file cannot be imported" onClose=${() => setProblem("")}><p>${problem}</p></>`}`;
}

function NameField({ onDone }) {
  const field = useRef(null);
  useEffect(() => field.current.focus(), []);
  const keys = (event) => {
    event.stopPropagation();
    if (event.key === "Enter") onDone(event.target.value.trim());
    if (event.key === "Escape") onDone("");
  };
  return html`<input ref=${field} class="preset-name" aria-label="Name of the preset" placeholder="Name" onKeyDown=${keys} onBlur=${(event) => onDone(event.target.value.trim())} />`;
}
