// The models view.
import { html } from "../lib/dom.js";
import { useModels } from "../lib/models.js";

export function View() {
  const { models, error } = useModels();
  return html`<div class="page"><h1>Models</h1>${error?.message}
    <ul>${models?.map((model) => html`<li>${model.id} ${model.state}</li>`)}</ul></div>`;
}
