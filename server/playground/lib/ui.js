// The controls that all views share.
import { html, useEffect, useId, useRef, useState } from "./dom.js";
import { Icon } from "./icons.js";
import { Signal, useSignal } from "./signal.js";

/** A button that shows an icon only; `label` is its name and its tooltip. */
export function IconButton({ icon, label, size, class: more = "", ...rest }) {
  return html`<button type="button" class="icon-button ${more}" aria-label=${label} title=${label} ...${rest}>
    <${Icon} name=${icon} size=${size} />
  </button>`;
}

/** A button that copies a text and says so for a moment. `text` is the text, or returns it. */
export function CopyButton({ text, label = "Copy", class: more = "" }) {
  const [done, setDone] = useState(false);
  const copy = async () => {
    await copyText(typeof text === "function" ? text() : text);
    setDone(true);
    setTimeout(() => setDone(false), 1500);
  };
  return html`<${IconButton} icon=${done ? "check" : "copy"} label=${done ? "Copied" : label} class=${more} onClick=${copy} />`;
}

export async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    // Without HTTPS there is no clipboard API.
    const area = document.createElement("textarea");
    area.value = text;
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  announce("Copied");
}

/** A label above a control, which gets its id: `<${Field} label="Seed">${(id) => …}</>`. */
export function Field({ label, hint, children }) {
  const id = useId();
  return html`<div class="field">
    <label for=${id}>${label}</label>
    ${children(id)}
    ${hint && html`<p class="hint">${hint}</p>`}
  </div>`;
}

/** A number with a slider; empty means the model's own value, which `fallback` shows. */
export function NumberField({ label, value, onChange, min, max, step, fallback, hint }) {
  const isSet = value !== undefined && value !== null;
  const change = (event) => onChange(event.target.value === "" ? undefined : Number(event.target.value));
  return html`<${Field} label=${label} hint=${hint}>
    ${(id) => html`<div class="number-field">
      <input type="range" aria-label=${`${label}, slider`} min=${min} max=${max} step=${step}
        value=${isSet ? value : (fallback ?? min)} onInput=${change} class=${isSet ? "" : "is-default"} />
      <input type="number" id=${id} min=${min} max=${max} step=${step} value=${isSet ? value : ""}
        placeholder=${fallback ?? ""} onInput=${change} />
    </div>`}
  </>`;
}

export function Toggle({ label, value, onChange, hint }) {
  const id = useId();
  return html`<div class="field toggle">
    <input type="checkbox" role="switch" id=${id} checked=${value} onChange=${(event) => onChange(event.target.checked)} />
    <label for=${id}>${label}</label>
    ${hint && html`<p class="hint">${hint}</p>`}
  </div>`;
}

/** A modal dialog. Escape and its close button call `onClose`. */
export function Dialog({ title, onClose, children, class: more = "" }) {
  const ref = useRef(null);
  const id = useId();
  useEffect(() => {
    const dialog = ref.current;
    dialog.showModal();
    return () => dialog.close(); // gives the focus back
  }, []);
  const cancel = (event) => {
    event.preventDefault();
    onClose();
  };
  return html`<dialog ref=${ref} class=${more} aria-labelledby=${id} onCancel=${cancel}>
    <header>
      <h2 id=${id}>${title}</h2>
      <${IconButton} icon="close" label="Close" onClick=${onClose} />
    </header>
    ${children}
  </dialog>`;
}

/** A button that opens a list of actions, `{ label, icon, run, danger }`. */
export function Menu({ label, icon = "more", items }) {
  const id = useId();
  const button = useRef(null);
  const list = useRef(null);
  const place = (event) => {
    if (event.newState !== "open") return;
    const { right, bottom, top } = button.current.getBoundingClientRect();
    const { offsetWidth: width, offsetHeight: height } = list.current;
    list.current.style.left = `${Math.max(8, right - width)}px`;
    list.current.style.top = `${bottom + height + 8 < innerHeight ? bottom + 4 : top - height - 4}px`;
    list.current.querySelector("button")?.focus();
  };
  const move = (event) => {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    const buttons = [...list.current.querySelectorAll("button")];
    buttons.at((buttons.indexOf(document.activeElement) + step) % buttons.length).focus();
  };
  const choose = (item) => () => {
    list.current.hidePopover();
    item.run();
  };
  return html`<${Fragmented}>
    <button type="button" ref=${button} class="icon-button" aria-label=${label} title=${label} aria-haspopup="menu" popovertarget=${id}>
      <${Icon} name=${icon} />
    </button>
    <div id=${id} ref=${list} popover="auto" class="menu" role="menu" onToggle=${place} onKeyDown=${move}>
      ${items.filter(Boolean).map((item) => html`<button type="button" role="menuitem" class=${item.danger ? "danger" : ""} onClick=${choose(item)}>
        ${item.icon && html`<${Icon} name=${item.icon} size=${16} />`}${item.label}
      </button>`)}
    </div>
  </>`;
}

const Fragmented = ({ children }) => children;

/** A sentence about what went wrong, with what can be done about it. */
export function ErrorNote({ error, onRetry }) {
  return html`<div class="error-note" role="alert">
    <p>${error.message}</p>
    ${onRetry && html`<button type="button" onClick=${onRetry}>Try again</button>`}
  </div>`;
}

const announced = new Signal("");

/** Says something to a screen reader. */
export function announce(text) {
  announced.value = "";
  announced.value = text;
}

export function Announcer() {
  return html`<div class="visually-hidden" role="status" aria-live="polite">${useSignal(announced)}</div>`;
}
