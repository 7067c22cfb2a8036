// Two pictures one above the other, with a line to drag between them.
import { html, useState } from "../lib/dom.js";

export function Compare({ before, after, alt, width, height }) {
  const [at, setAt] = useState(50);
  return html`<div class="compare" style=${{ aspectRatio: `${width} / ${height}` }}>
    <img src=${after} alt=${alt} draggable=${false} />
    <img src=${before} alt="" draggable=${false} style=${{ clipPath: `inset(0 ${100 - at}% 0 0)` }} />
    <span class="compare-name" aria-hidden="true">Before</span>
    <span class="compare-name is-after" aria-hidden="true">After</span>
    <input type="range" min="0" max="100" step="0.5" value=${at} aria-label="Share of the earlier picture"
      onInput=${(event) => setAt(Number(event.target.value))} />
    <span class="compare-line" aria-hidden="true" style=${{ left: `${at}%` }}></span>
  </div>`;
}
