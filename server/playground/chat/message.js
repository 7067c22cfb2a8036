// One message: of the user, of the model, or the result of a tool.
import { html, useEffect, useState } from "../lib/dom.js";
import { rate, seconds } from "../lib/format.js";
import { CopyButton, copyText, ErrorNote, IconButton, Menu } from "../lib/ui.js";
import { edit, giveResult, goOn, regenerate, requestOf } from "./actions.js";
import { choose } from "./conversations.js";
import { compare, comparer, Grounds } from "./grounds.js";
import { Markdown } from "./growing_text.js";
import { asCurl, asPython } from "./request.js";
import { runs } from "./run.js";
import { Tokens } from "./tokens.js";

export function Message(props) {
  const { role } = props.message;
  if (role === "user") return html`<${UserMessage} ...${props} />`;
  return role === "tool" ? html`<${ToolMessage} ...${props} />` : html`<${Answer} ...${props} />`;
}

function UserMessage({ conversationId, message, versions, model }) {
  const [isEdited, setEdited] = useState(false);
  const save = (text) => {
    setEdited(false);
    edit(conversationId, message, text, model);
  };
  return html`<article class="message of-user">
    <h2 class="visually-hidden">You</h2>
    ${isEdited
      ? html`<${Editor} text=${message.content} action="Send" onSave=${save} onCancel=${() => setEdited(false)} />`
      : html`<div class="bubble">
          ${message.images?.map((url, i) => html`<img src=${url} alt=${`Attached picture ${i + 1}`} />`)}
          ${message.content && html`<p>${message.content}</p>`}
        </div>
        <div class="message-foot">
          <${Versions} conversationId=${conversationId} message=${message} versions=${versions} />
          <${CopyButton} text=${message.content} label="Copy the message" />
          <${IconButton} icon="edit" label="Edit and ask again" onClick=${() => setEdited(true)} />
        </div>`}
  </article>`;
}

function ToolMessage({ message }) {
  return html`<article class="message of-tool">
    <h2 class="visually-hidden">Result of a tool</h2>
    <details><summary>Result of ${message.name}</summary><pre tabindex="0">${message.content}</pre></details>
  </article>`;
}

function Answer({ conversationId, message, versions, model, isLast, onRender }) {
  const run = runs.get(message.id);
  useFrames(run);
  const [view, setView] = useState(null);
  const [isEdited, setEdited] = useState(false);
  const isRunning = run !== undefined && !run.isEnded;
  const { text: content, reasoning, calls, tokens, error } = run ?? { ...message, text: message.content };
  const finish = run?.isEnded === false ? null : (run?.finish ?? message.finish);
  const showsTokens = view === "tokens" || (view === null && tokens?.length > 0 && Boolean(message.settings?.showsTokens));
  const copyAs = (write) => () => copyText(write(requestOf(conversationId, message)));
  const save = (text) => {
    setEdited(false);
    edit(conversationId, message, text);
  };
  return html`<article class="message of-model" aria-busy=${isRunning}>
    <h2 class="message-name">${message.model}</h2>
    ${reasoning && html`<${Reasoning} text=${reasoning} run=${run} isThinking=${isRunning && !content} onRender=${onRender} />`}
    ${isEdited && html`<${Editor} text=${content} action="Keep" onSave=${save} onCancel=${() => setEdited(false)} />`}
    ${!isEdited && (showsTokens
      ? html`<${Tokens} conversationId=${conversationId} message=${message} tokens=${tokens} rest=${content} isRunning=${isRunning} onRender=${onRender} />`
      : html`<${Markdown} text=${content} run=${run} onRender=${onRender} />`)}
    ${calls?.filter(Boolean).map((call) => html`<${Call} key=${call.id} conversationId=${conversationId} message=${message} call=${call} isOpen=${isLast && !isRunning} />`)}
    ${isRunning && !content && !reasoning && html`<p class="waiting"><span class="dots" aria-hidden="true"><i></i><i></i><i></i></span>${run.waitsFor ?? html`<span class="visually-hidden">Waiting for the answer</span>`}</p>`}
    ${error && html`<${ErrorNote} error=${error} onRetry=${() => regenerate(conversationId, message)} />`}
    ${!isRunning && message.grounds && html`<${Grounds} messageId=${message.id} grounds=${message.grounds} onRetry=${() => compare(conversationId, message.id)} />`}
    ${!isRunning && html`<div class="message-foot">
      <${Versions} conversationId=${conversationId} message=${message} versions=${versions} />
      <${CopyButton} text=${content ?? ""} label="Copy the answer" />
      <${IconButton} icon="redo" label="Write another answer" onClick=${() => regenerate(conversationId, message)} />
      <${Menu} label="More" items=${[
        tokens?.length > 0 && { icon: "tune", label: showsTokens ? "Show as text" : "Show tokens", run: () => setView(showsTokens ? "text" : "tokens") },
        content && comparer() && { icon: "compare", label: "Compare with the conversation", run: () => compare(conversationId, message.id) },
        content && { icon: "edit", label: "Edit the answer", run: () => setEdited(true) },
        { icon: "copy", label: "Copy as curl", run: copyAs(asCurl) },
        { icon: "copy", label: "Copy as Python", run: copyAs(asPython) },
      ]} />
      ${MAY_GO_ON[finish] && content && isLast && html`<button type="button" class="quiet small" onClick=${() => goOn(conversationId, { ...message, content, tokens })}>Go on</button>`}
      <${Stats} stats=${message.stats} finish=${finish} />
    </div>`}
  </article>`;
}

/** What to say of answers that ended before their end, and could go on. */
const MAY_GO_ON = {
  stopped: "stopped",
  length: "cut at the limit of tokens",
  lost: "interrupted",
};

function useFrames(run) {
  const [, setFrame] = useState(0);
  useEffect(() => {
    if (!run || run.isEnded) return undefined;
    // The text renders itself; this is for what appears once.
    let last = "";
    return run.watch(() => {
      const { text, reasoning, calls, tokens, isEnded, waitsFor } = run;
      const now = [text !== "", reasoning !== "", calls.map((call) => call?.arguments).join(), tokens.length, isEnded, waitsFor].join("|");
      if (now !== last) setFrame((frame) => frame + 1);
      last = now;
    });
  }, [run]);
}

function Reasoning({ text, run, isThinking, onRender }) {
  return html`<details class="reasoning">
    <summary>${isThinking ? "Thinking…" : "Thoughts"}</summary>
    <${Markdown} text=${text} run=${run} part="reasoning" onRender=${onRender} />
  </details>`;
}

function Call({ conversationId, message, call, isOpen }) {
  const [result, setResult] = useState("");
  const submit = (event) => {
    event.preventDefault();
    giveResult(conversationId, message, call, result);
  };
  return html`<div class="call">
    <p>Calls <code>${call.name}</code></p>
    <pre tabindex="0" aria-label="Arguments" role="region">${pretty(call.arguments)}</pre>
    ${isOpen && html`<form onSubmit=${submit}>
      <input aria-label=${`Result of ${call.name}`} placeholder="Type what the function returns" value=${result} onInput=${(event) => setResult(event.target.value)} />
      <button type="submit" disabled=${!result}>Give result</button>
    </form>`}
  </div>`;
}

function pretty(text) {
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return text; // still being written, or cut off
  }
}

function Versions({ conversationId, message, versions }) {
  if (versions.length < 2) return null;
  const at = versions.indexOf(message);
  const step = (by) => () => choose(conversationId, versions[at + by]);
  return html`<span class="versions" role="group" aria-label="Versions">
    <${IconButton} icon="previous" size=${15} label="Previous version" disabled=${at === 0} onClick=${step(-1)} />
    <span>${at + 1} / ${versions.length}</span>
    <${IconButton} icon="next" size=${15} label="Next version" disabled=${at === versions.length - 1} onClick=${step(1)} />
  </span>`;
}

function Stats({ stats, finish }) {
  const parts = [
    MAY_GO_ON[finish],
    stats?.tokensPerS && `${rate(stats.tokensPerS)} tokens/s`,
    stats?.firstTokenS && `first after ${seconds(stats.firstTokenS)}`,
    stats?.numTokens && `${stats.numTokens} tokens`,
    stats?.numPromptTokens && `prompt ${stats.numPromptTokens}, ${stats.numCachedTokens ?? 0} cached`,
  ];
  return html`<span class="stats">${parts.filter(Boolean).join(" · ")}</span>`;
}

function Editor({ text, action, onSave, onCancel }) {
  const [value, setValue] = useState(text);
  const keys = (event) => {
    if (event.key === "Escape") onCancel();
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) onSave(value);
  };
  return html`<div class="editor">
    <textarea aria-label="Text of the message" rows=${Math.min(12, value.split("\n").length + 1)} value=${value} onInput=${(event) => setValue(event.target.value)}
      onKeyDown=${keys} ref=${(element) => element && !element.dataset.seen && (element.dataset.seen = "1", element.focus())}></textarea>
    <div class="actions">
      <button type="button" class="quiet" onClick=${onCancel}>Cancel</button>
      <button type="button" class="primary" disabled=${!value.trim()} onClick=${() => onSave(value)}>${action}</button>
    </div>
  </div>`;
}
