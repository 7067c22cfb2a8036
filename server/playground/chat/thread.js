// The messages of a conversation, from the first to the last, kept in view while they grow.
import { html, useEffect, useLayoutEffect, useRef, useState } from "../lib/dom.js";
import { IconButton } from "../lib/ui.js";
import { vote } from "./actions.js";
import { choose, shownPath, versionsOf } from "./conversations.js";
import { Message } from "./message.js";

const NEAR_PX = 48;
const EXAMPLES = [
  "Explain how rainbows form, in three sentences.",
  "Write a Python function that reverses the words of a sentence.",
  "Solve x² − 5x + 6 = 0 step by step.",
];

export function Thread({ id, one, model, models, onAsk }) {
  const frame = useRef(null);
  const [isAtEnd, setAtEnd] = useState(true);
  const sticks = useRef(true);
  const path = one ? shownPath(one) : [];
  const toEnd = () => {
    frame.current.scrollTop = frame.current.scrollHeight;
  };
  const look = () => {
    const { scrollTop, scrollHeight, clientHeight } = frame.current;
    sticks.current = scrollHeight - scrollTop - clientHeight < NEAR_PX;
    setAtEnd(sticks.current);
  };
  const follow = () => sticks.current && toEnd();
  useLayoutEffect(() => {
    sticks.current = true;
    toEnd();
  }, [id, path.length]);
  // A reader who scrolls up must not be pulled down by what is written meanwhile.
  const onWheel = (event) => {
    if (event.deltaY < 0) sticks.current = false;
  };
  return html`<div class="thread" ref=${frame} onScroll=${look} onWheel=${onWheel} tabindex="0" role="log" aria-live="off" aria-label="Messages">
    ${path.length === 0 ? html`<${Welcome} model=${model} models=${models} onAsk=${onAsk} />` : html`<ol class="messages">
      ${path.map((message) => html`<li key=${message.parent ?? "first"}>
        <${Turn} id=${id} one=${one} message=${message} model=${model} isLast=${message === path.at(-1)} onRender=${follow} />
      </li>`)}
    </ol>`}
    ${!isAtEnd && html`<${IconButton} icon="down" label="Go to the end" class="to-end" onClick=${toEnd} />`}
  </div>`;
}

function Turn({ id, one, message, model, isLast, onRender }) {
  const versions = versionsOf(one.messages, message.parent);
  const pair = message.pair ? versions.filter(({ pair }) => pair === message.pair) : [];
  const common = { conversationId: id, model, isLast, onRender };
  if (pair.length < 2) return html`<${Message} key=${message.id} message=${message} versions=${versions} ...${common} />`;
  const others = versions.filter((version) => !pair.includes(version) || version === pair[0]);
  const isVoted = pair.some((version) => version.vote);
  const decide = (best) => () => {
    vote(id, pair, best);
    if (best) choose(id, best);
  };
  return html`<div class="pair">
    ${pair.map((version) => html`<div class="pair-side ${version.id === message.id && isVoted ? "is-chosen" : ""}" key=${version.id}>
      <${Message} message=${version} versions=${others.map((other) => (other === pair[0] ? version : other))} ...${common} />
    </div>`)}
    <div class="votes" role="group" aria-label="Which answer is better?">
      ${isVoted
        ? html`<p class="hint">${pair.every(({ vote }) => vote === "tie") ? "You called it a tie." : `You preferred ${pair.find(({ vote }) => vote === "win").model}. The conversation continues from there.`}</p>`
        : html`<button type="button" onClick=${decide(pair[0])}>Left is better</button>
            <button type="button" onClick=${decide(null)}>Tie</button>
            <button type="button" onClick=${decide(pair[1])}>Right is better</button>`}
    </div>
  </div>`;
}

function Welcome({ model, models, onAsk }) {
  const news = models.find(({ id }) => id === model);
  return html`<div class="welcome">
    <h2>What would you like to know?</h2>
    ${news && news.state !== "loaded" && html`<p class="hint">${news.id} is ${news.state}${news.progress ? `, ${Math.round(news.progress * 100)} %` : ""}. You can already send a message; the answer starts when the model is ready.</p>`}
    <div class="examples">
      ${EXAMPLES.map((text) => html`<button type="button" disabled=${!model} onClick=${() => onAsk(text, [])}>${text}</button>`)}
    </div>
  </div>`;
}
