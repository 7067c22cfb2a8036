// The list of conversations: search, rename, delete, export, import.
import { html, useEffect, useMemo, useRef, useState } from "../lib/dom.js";
import { saveFile } from "../lib/files.js";
import { day } from "../lib/format.js";
import { Icon } from "../lib/icons.js";
import { operator } from "../lib/operator.js";
import { go } from "../lib/route.js";
import { useSignal } from "../lib/signal.js";
import { announce, Dialog, Menu } from "../lib/ui.js";
import { exported, imported, remove, rename, search, summaries } from "./conversations.js";

const SEARCH_AFTER_MS = 150;

export function Sidebar({ rest: shownId }) {
  const all = useSignal(summaries) ?? [];
  const isOnServer = useSignal(operator)?.keeps_history;
  const [query, setQuery] = useState("");
  const [found, setFound] = useState(null);
  useEffect(() => {
    if (!query.trim()) return setFound(null);
    const timer = setTimeout(async () => setFound(await search(query)), SEARCH_AFTER_MS);
    return () => clearTimeout(timer);
  }, [query, all]);
  const groups = useMemo(() => byDay(found ? all.filter(({ id }) => found.has(id)) : all), [all, found]);
  return html`<div class="history">
    <a class="new-chat" href="#/chat"><${Icon} name="plus" />New chat</a>
    <div class="history-search">
      <${Icon} name="search" size=${15} />
      <input type="search" aria-label="Search conversations" placeholder="Search" value=${query} onInput=${(event) => setQuery(event.target.value)} />
      <${FileMenu} hasSome=${all.length > 0} />
    </div>
    <div class="history-list">
      ${groups.map(([name, entries]) => html`<section key=${name} aria-label=${name}>
        <h2>${name}</h2>
        <ul>${entries.map((entry) => html`<${Entry} key=${entry.id} entry=${entry} isShown=${entry.id === shownId} />`)}</ul>
      </section>`)}
      ${query && found?.size === 0 && html`<p class="hint">Nothing found.</p>`}
      ${isOnServer && html`<p class="hint">Kept on the server, too.</p>`}
    </div>
  </div>`;
}

function Entry({ entry, isShown }) {
  const [isRenamed, setRenamed] = useState(false);
  const [isDeleted, setDeleted] = useState(false);
  const title = entry.title || "Untitled";
  const keep = (text) => {
    setRenamed(false);
    if (text && text !== entry.title) rename(entry.id, text);
  };
  const drop = async () => {
    setDeleted(false);
    if (isShown) go("chat");
    await remove(entry.id);
    announce("Deleted");
  };
  if (isRenamed) return html`<li><${TitleField} title=${entry.title} onDone=${keep} /></li>`;
  return html`<li class="entry ${isShown ? "is-shown" : ""}">
    <a href=${`#/chat/${entry.id}`} aria-current=${isShown ? "true" : undefined} title=${title}>${title}</a>
    <${Menu} label=${`Actions for ${title}`} items=${[
      { icon: "edit", label: "Rename", run: () => setRenamed(true) },
      { icon: "download", label: "Export", run: async () => saveFile(`${title.slice(0, 40)}.json`, await exported(entry.id)) },
      { icon: "trash", label: "Delete", danger: true, run: () => setDeleted(true) },
    ]} />
    ${isDeleted && html`<${Dialog} title="Delete this conversation?" onClose=${() => setDeleted(false)}>
      <p>“${title}” is kept in this browser only. Deleting it cannot be undone.</p>
      <div class="actions"><button type="button" onClick=${() => setDeleted(false)}>Keep</button><button type="button" class="danger" onClick=${drop}>Delete</button></div>
    </>`}
  </li>`;
}

function TitleField({ title, onDone }) {
  const field = useRef(null);
  useEffect(() => field.current.select(), []);
  const keys = (event) => {
    if (event.key === "Enter") onDone(event.target.value.trim());
    if (event.key === "Escape") {
      event.stopPropagation();
      onDone("");
    }
  };
  return html`<input ref=${field} aria-label="Title" value=${title} onKeyDown=${keys} onBlur=${(event) => onDone(event.target.value.trim())} />`;
}

function FileMenu({ hasSome }) {
  const picker = useRef(null);
  const [problem, setProblem] = useState("");
  const load = async (event) => {
    const [file] = event.target.files;
    event.target.value = "";
    try {
      const num = await imported(await file.text());
      announce(`${num} imported`);
    } catch (error) {
      setProblem(error.message);
    }
  };
  return html`<input type="file" accept="application/json" hidden ref=${picker} onChange=${load} />
    <${Menu} label="Export and import" items=${[
      hasSome && { icon: "download", label: "Export all", run: async () => saveFile("tandem-conversations.json", await exported()) },
      { icon: "upload", label: "Import", run: () => picker.current.click() },
    ]} />
    ${problem && html`<${Dialog} title="This file cannot be imported" onClose=${() => setProblem("")}><p>${problem}</p></>`}`;
}

function byDay(entries) {
  const groups = new Map();
  for (const entry of entries) {
    const name = day(entry.updated);
    groups.set(name, [...(groups.get(name) ?? []), entry]);
  }
  return [...groups];
}
