// The chat view.
import { html } from "../lib/dom.js";

export function View() {
  return html`<div class="page"><h1>Chat</h1></div>`;
}
