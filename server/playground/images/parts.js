// Small controls of the view for images.
import { html, useId, useRef } from "../lib/dom.js";
import { Icon } from "../lib/icons.js";

/** A button that asks for a picture of the disk, or for several with `onFiles`. Without `text` it
 * shows its icon only. */
export function FileButton({ icon, label, text, onFile, onFiles, class: more = "" }) {
  const field = useRef(null);
  const chosen = (event) => {
    const files = [...event.target.files];
    event.target.value = "";
    if (files.length) onFiles ? onFiles(files) : onFile(files[0]);
  };
  return html`<button type="button" class="${text ? "" : "icon-button"} ${more}" aria-label=${text ? undefined : label} title=${label} onClick=${() => field.current.click()}>
      <${Icon} name=${icon} />${text}
    </button>
    <input ref=${field} type="file" accept="image/png,image/jpeg,image/webp" multiple=${Boolean(onFiles)} hidden aria-label=${label} onChange=${chosen} />`;
}

/** One of a few choices, `[value, label]`, side by side. */
export function Choices({ label, options, value, onChange }) {
  const name = useId();
  return html`<div class="choices" role="radiogroup" aria-label=${label}>
    ${options.map(([option, text]) => html`<label key=${option}>
      <input type="radio" name=${name} checked=${option === value} onChange=${() => onChange(option)} />
      <span>${text}</span>
    </label>`)}
  </div>`;
}

/** The style of a `result-picture`: the picture fits the window, small ones at most four times as large. */
export function boxOf({ width, height }) {
  return { "--ratio": width / height, "--most": `${4 * width}px` };
}
