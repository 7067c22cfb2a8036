// The models: their states and memory, what they do now, and the running requests.
import { html, useEffect, useRef, useState } from "../lib/dom.js";
import { call, send } from "../lib/api.js";
import { bytes, percent, rate, seconds } from "../lib/format.js";
import { refreshModels, useModels } from "../lib/models.js";
import { announce, ErrorNote } from "../lib/ui.js";
import { growth, read, sum, tokensWritten } from "./metrics.js";

const POLL_MS = 2000;
const KINDS = {
  text: "Text",
  image: "Images",
  embedding: "Embeddings",
  reranker: "Reranker",
  upscale: "Upscaler",
  matting: "Background removal",
};
/** The gauges of running and waiting work of each kind of model. */
const WORK = {
  text: "num_requests",
  image: "image_num",
  embedding: "embedding_num",
  reranker: "reranker_num",
  upscale: "upscale_num",
  matting: "matting_num",
};

const imagesDrawn = (reading) => sum(reading, "image_images_total", { outcome: "completed" });

export function View({ active }) {
  const { models, error } = useModels();
  const { now, before, problem } = useLive(active);
  return html`<div class="page models">
    <h1>Models</h1>
    ${(error ?? problem) && html`<${ErrorNote} error=${error ?? problem} />`}
    ${now && html`<${Strip} now=${now} before=${before} />`}
    ${now && html`<${Memory} now=${now} />`}
    <section aria-labelledby="served">
      <h2 id="served">Served and loadable</h2>
      ${models?.length === 0 && html`<p class="hint">There are no models.</p>`}
      <ul class="model-list">
        ${models?.map((model) => html`<${Model} key=${model.id} model=${model} now=${now} before=${before} />`)}
      </ul>
    </section>
    <${Requests} requests=${now?.requests ?? []} />
  </div>`;
}

/** What the server does, read again and again while the view is on show. */
function useLive(active) {
  const [live, setLive] = useState({ now: null, before: null, problem: null });
  const isBusy = useRef(false);
  useEffect(() => {
    if (!active) return undefined;
    const poll = async () => {
      if (document.hidden || isBusy.current) return;
      isBusy.current = true;
      try {
        const now = await read();
        setLive((last) => ({ now, before: last.now, problem: null }));
      } catch (problem) {
        setLive((last) => ({ ...last, problem }));
      } finally {
        isBusy.current = false;
      }
    };
    poll();
    refreshModels();
    const timer = setInterval(poll, POLL_MS);
    return () => clearInterval(timer);
  }, [active]);
  return live;
}

function Strip({ now, before }) {
  const total = (suffix) => Object.values(WORK).reduce((all, name) => all + sum(now, `${name}_${suffix}`), 0);
  const facts = [
    ["Running", total("running")],
    ["Waiting", total("waiting")],
    ["KV cache", percent(Math.max(0, ...now.samples.filter(({ name }) => name === "kv_cache_usage_ratio").map(({ value }) => value)))],
    ["Tokens/s", rate(growth(before, now, tokensWritten()))],
    ["Images/min", rate(60 * growth(before, now, imagesDrawn))],
  ];
  return html`<dl class="strip">${facts.map(([name, value]) => html`<div><dt>${name}</dt><dd>${value}</dd></div>`)}</dl>`;
}

/** The memory of each device: what each model holds of the budget. */
function Memory({ now }) {
  const budgets = now.samples.filter(({ name }) => name === "memory_budget_bytes");
  return budgets.map(({ labels: { device }, value: budget }) => {
    const held = now.samples.filter((one) => one.name === "memory_held_bytes" && one.labels.device === device);
    const total = held.reduce((all, { value }) => all + value, 0);
    return html`<section class="memory" aria-label=${`Memory of ${device}`}>
      <p><strong>Memory</strong> <span class="hint">${device}: ${bytes(total)} of ${bytes(budget)} are reserved</span></p>
      <div class="memory-bar" aria-hidden="true">${held.map((one, i) => html`<i class="part-${i % 4}" style=${{ width: `${(100 * one.value) / budget}%` }} title=${one.labels.model_name}></i>`)}</div>
      <ul>${held.map(({ labels, value }, i) => html`<li><i class="part-${i % 4}" aria-hidden="true"></i>${labels.model_name} ${bytes(value)}</li>`)}</ul>
    </section>`;
  });
}

function Model({ model, now, before }) {
  const [error, setError] = useState(null);
  const act = async (path, news, body = { model: model.id, wait: false }) => {
    setError(null);
    try {
      await send(path, { body });
      announce(news);
      refreshModels();
    } catch (problem) {
      setError(problem);
    }
  };
  const sleep = () => act(`sleep?model=${encodeURIComponent(model.id)}`, `${model.id} sleeps`, {});
  const wake = () => act("models/load", `${model.id} wakes`);
  const pin = () => act("models/pin", `${model.id} is ${model.pinned ? "not pinned any more" : "pinned"}`, { model: model.id, pinned: !model.pinned });
  const isServed = !model.parent && ["loaded", "sleeping"].includes(model.state);
  const isGone = model.state === "unloaded" || model.state === "failed";
  return html`<li class="model is-${model.state}">
    <div class="model-head">
      <h3>${model.id}</h3>
      ${model.kind && html`<span class="chip">${KINDS[model.kind] ?? model.kind}</span>`}
      <${State} model=${model} />
      ${model.loadable && isGone && html`<button type="button" onClick=${() => act("models/load", `${model.id} is being loaded`)}>Load</button>`}
      ${isServed && html`<button type="button" class="quiet" aria-pressed=${model.pinned ? "true" : "false"} onClick=${pin}>Pin</button>`}
      ${isServed && !model.pinned && model.state === "loaded" && html`<button type="button" class="quiet" onClick=${sleep}>Sleep</button>`}
      ${isServed && model.state === "sleeping" && html`<button type="button" onClick=${wake}>Wake</button>`}
      ${!model.parent && !isGone && model.state !== "unloading" && html`<button type="button" class="quiet" onClick=${() => act("models/unload", `${model.id} is being unloaded`)}>${isServed ? "Unload" : "Cancel"}</button>`}
    </div>
    <${Facts} model=${model} now=${now} before=${before} />
    ${model.state !== "loaded" && model.detail && html`<p class="hint">${model.detail}</p>`}
    ${error && html`<${ErrorNote} error=${error} />`}
  </li>`;
}

function State({ model: { state, progress } }) {
  const isMoving = !["loaded", "sleeping", "unloaded", "failed"].includes(state);
  return html`<span class="state"><i aria-hidden="true"></i>${state}${isMoving && progress ? ` ${percent(progress)}` : ""}</span>
    ${isMoving && html`<progress aria-label="Progress" max="1" value=${progress ?? undefined}></progress>`}`;
}

function Facts({ model: { id, kind, card, parent, settings }, now, before }) {
  const of = { model_name: id };
  const work = WORK[kind];
  const facts = [
    parent && `adapter of ${parent}`,
    card?.max_model_len && `${card.max_model_len.toLocaleString("en")} tokens of context`,
    card?.input_modalities?.includes("image") && "takes pictures",
    card?.default_size && `${card.default_size}, ${card.default_steps ?? "no"} steps`,
    ...Object.entries(settings).map(([name, value]) => `${name} ${value}`),
    ...(now && card && !parent ? [
      work && `${sum(now, `${work}_running`, of)} running, ${sum(now, `${work}_waiting`, of)} waiting`,
      kind === "text" && `${rate(growth(before, now, tokensWritten(id)))} tokens/s`,
      kind === "text" && `KV cache ${percent(sum(now, "kv_cache_usage_ratio", of))} in use, ${bytes(sum(now, "kv_bytes_committed", of))}`,
    ] : []),
  ].filter(Boolean);
  return facts.length > 0 && html`<p class="facts">${facts.map((fact) => html`<span>${fact}</span>`)}</p>`;
}

function Requests({ requests }) {
  const [error, setError] = useState(null);
  const cancel = async ({ id }) => {
    try {
      await call(`v1/requests/${encodeURIComponent(id)}`, { method: "DELETE" });
      announce("Cancelled");
      setError(null);
    } catch (problem) {
      setError(problem.status === 404 ? null : problem); // it has just ended
    }
  };
  return html`<section aria-labelledby="requests">
    <h2 id="requests">Running requests</h2>
    ${error && html`<${ErrorNote} error=${error} />`}
    ${requests.length === 0
      ? html`<p class="hint">None at present.</p>`
      : html`<div class="table-frame" role="region" aria-labelledby="requests" tabindex="0"><table class="requests">
          <thead><tr><th scope="col">Kind</th><th scope="col">Model</th><th scope="col">State</th><th scope="col">Age</th><th scope="col">Done</th><td></td></tr></thead>
          <tbody>${requests.map((one) => html`<tr key=${one.id}>
            <td>${one.operation ?? one.kind}</td><td>${one.model}</td><td>${one.status}</td>
            <td>${seconds(Math.max(0, Date.now() / 1000 - one.created))}</td>
            <td>${one.progress !== null && one.progress !== undefined ? percent(one.progress) : one.completion_tokens !== null ? `${one.completion_tokens} tokens` : ""}</td>
            <td><button type="button" class="quiet" aria-label=${`Cancel the request ${one.id}`} onClick=${() => cancel(one)}>Cancel</button></td>
          </tr>`)}</tbody>
        </table></div>`}
  </section>`;
}
