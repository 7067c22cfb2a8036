// The shell: navigation, theme, the dialog that asks for a key, and the view on show.
import { html, render, useEffect, useRef, useState } from "./lib/dom.js";
import { keyRequest } from "./lib/api.js";
import { Icon } from "./lib/icons.js";
import { refreshModels, useModels } from "./lib/models.js";
import { route } from "./lib/route.js";
import { useSignal } from "./lib/signal.js";
import { theme, THEMES } from "./lib/theme.js";
import { Announcer, Dialog, IconButton } from "./lib/ui.js";
import { VIEWS } from "./views.js";

function App() {
  const { view, rest } = useSignal(route);
  const active = VIEWS.find(({ id }) => id === view) ?? VIEWS[0];
  const visited = useVisited(active);
  const lastRest = useRef({});
  lastRest.current[active.id] = view === active.id ? rest : "";
  const addressOf = (id) => (lastRest.current[id] ? `#/${id}/${lastRest.current[id]}` : `#/${id}`);
  const [isOpen, setOpen] = useState(false);
  useEffect(() => setOpen(false), [view, rest]);
  useEffect(() => {
    document.title = `${active.label} · Tandem`;
  }, [active]);
  const show = (part) =>
    visited.map(({ id, module }) => module[part] && html`<${Kept} key=${id} active=${id === active.id}>
      <${module[part]} rest=${lastRest.current[id]} active=${id === active.id} />
    </>`);
  return html`
    <a class="skip" href="#main" onClick=${skip}>Skip to the content</a>
    <header class="topbar">
      <${IconButton} icon="menu" label="Menu" aria-expanded=${isOpen} onClick=${() => setOpen(!isOpen)} />
      <span class="topbar-title">${active.label}</span>
    </header>
    <aside class="sidebar ${isOpen ? "is-open" : ""}" aria-label="Navigation" onKeyDown=${(event) => event.key === "Escape" && setOpen(false)}>
      <${Brand} />
      <nav aria-label="Views">
        ${VIEWS.map(({ id, label }) => html`<a href=${addressOf(id)} aria-current=${id === active.id ? "page" : undefined}>
          <${Icon} name=${id} />${label}
        </a>`)}
      </nav>
      <div class="sidebar-view">${show("Sidebar")}</div>
      <${Footer} />
    </aside>
    ${isOpen && html`<div class="scrim" onClick=${() => setOpen(false)}></div>`}
    <main id="main" tabindex="-1">${show("View")}</main>
    <${KeyDialog} />
    <${Announcer} />
  `;
}

/** The views that were opened so far, with their modules. They stay, so that their work goes on. */
function useVisited(active) {
  const [visited, setVisited] = useState([]);
  useEffect(() => {
    if (visited.some(({ id }) => id === active.id)) return;
    active.load().then((module) => setVisited((before) => [...before, { id: active.id, module }]));
  }, [active]);
  return visited;
}

function Kept({ active, children }) {
  return html`<div class="kept" hidden=${!active}>${children}</div>`;
}

function Brand() {
  return html`<div class="brand"><img src="playground/icon.svg" width="24" height="24" alt="" /><span>Tandem</span></div>`;
}

function Footer() {
  const now = useSignal(theme);
  const next = THEMES[(THEMES.indexOf(now) + 1) % THEMES.length];
  const { error } = useModels();
  return html`<footer>
    ${error && html`<button type="button" class="offline" title=${error.message} onClick=${refreshModels}>
      ${error.status === 0 ? "No connection" : error.status === 401 ? "No key" : "Problem"}: try again
    </button>`}
    <a href="docs" target="_blank" rel="noopener">API</a>
    <${IconButton} icon=${now} label=${`Theme: ${now}. Switch to ${next}`} onClick=${() => (theme.value = next)} />
  </footer>`;
}

function KeyDialog() {
  const request = useSignal(keyRequest);
  const field = useRef(null);
  if (!request) return null;
  const submit = (event) => {
    event.preventDefault();
    request.answer(field.current.value.trim());
  };
  return html`<${Dialog} title="API key" onClose=${() => request.answer(null)}>
    <form onSubmit=${submit}>
      <p>This server asks for a key: ${request.message}.</p>
      <label for="api-key">Key</label>
      <input id="api-key" type="password" ref=${field} autocomplete="off" required autofocus />
      <p class="hint">It is kept in this tab only and forgotten when you close it.</p>
      <div class="actions"><button type="submit" class="primary">Continue</button></div>
    </form>
  </>`;
}

function skip(event) {
  event.preventDefault();
  document.getElementById("main").focus();
}

refreshModels();
document.getElementById("app").replaceChildren(); // what was shown until now
render(html`<${App} />`, document.getElementById("app"));
