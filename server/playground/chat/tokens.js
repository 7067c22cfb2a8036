// An answer token by token: coloured by probability, with the alternatives of each. Arrow keys move
// between tokens, Enter opens the alternatives, and choosing one writes on from there.
import { Component, html, useEffect, useId, useRef, useState } from "../lib/dom.js";
import { percent } from "../lib/format.js";
import { branchAt } from "./actions.js";
import { textOf } from "./run.js";

const PER_GROUP = 64;
const LIMITS = [0.05, 0.2, 0.5, 0.8]; // between the five shades
const SURENESS = `How likely the model found its own words, on average, and in how many places it took a token with a probability below 20 %.
This says how natural the text is to the model, not whether it is true.`;
const END = /^<\|?\/?[\w▁|:-]+\|?>$/;

export function Tokens({ conversationId, message, tokens, rest, isRunning, onRender }) {
  const frame = useRef(null);
  const [at, setAt] = useState(null); // the token whose alternatives are shown
  const shown = textOf(tokens.filter(({ bytes }) => !END.test(textOf([{ bytes }]))));
  useEffect(onRender);
  const open = (event) => {
    const index = indexOf(event.target);
    if (index !== null && !isRunning) setAt(index);
  };
  const keys = (event) => {
    const index = indexOf(event.target);
    if (index === null) return;
    if (event.key === "Enter" || event.key === " ") open(event);
    else if (event.key === "ArrowRight" || event.key === "ArrowLeft") focus(frame.current, index + (event.key === "ArrowRight" ? 1 : -1));
    else return;
    event.preventDefault();
  };
  const close = () => {
    focus(frame.current, at);
    setAt(null);
  };
  const groups = [];
  for (let begin = 0; begin < tokens.length; begin += PER_GROUP) groups.push(tokens.slice(begin, begin + PER_GROUP));
  return html`<div class="tokens">
    <div class="token-text" ref=${frame} role="group" aria-label="Tokens; arrow keys move, Enter shows the alternatives" onClick=${open} onKeyDown=${keys}>
      ${groups.map((group, i) => html`<${Group} key=${i} tokens=${group} begin=${i * PER_GROUP} current=${at !== null && Math.floor(at / PER_GROUP) === i ? at : null} />`)}
      ${rest.length > shown.length && html`<span class="token-rest">${rest.slice(shown.length)}</span>`}
    </div>
    ${at !== null && tokens[at] && html`<${Alternatives} token=${tokens[at]} anchor=${() => frame.current.querySelector(`[data-index="${at}"]`)} onClose=${close}
      onPick=${(other) => branchAt(conversationId, message, at, other)} />`}
    <div class="token-foot"><${Legend} />${!isRunning && message.stats?.meanProbability && html`<${Sureness} ...${message.stats} />`}</div>
  </div>`;
}

/** Tokens that are rendered together, and again only if their number or the open one changes. */
class Group extends Component {
  shouldComponentUpdate({ tokens, current }) {
    return tokens.length !== this.props.tokens.length || current !== this.props.current;
  }

  render({ tokens, begin, current }) {
    return tokens.map((token, i) => {
      const text = textOf([token]);
      const isEnd = END.test(text);
      const label = `${isEnd ? "end of the text" : text.trim() || "space"}, ${percent(Math.exp(token.logprob))}`;
      return html`<span role="button" tabindex=${begin + i === 0 ? 0 : -1} data-index=${begin + i} aria-label=${label} title=${summaryOf(token)}
        aria-haspopup="dialog" aria-expanded=${begin + i === current} class="token shade-${shadeOf(token.logprob)} ${token.isPicked ? "is-picked" : ""}">${isEnd ? "■" : visible(text)}</span>`;
    });
  }
}

/** What else could have come: a list beside the token. */
function Alternatives({ token, anchor, onClose, onPick }) {
  const list = useRef(null);
  const title = useId();
  useEffect(() => {
    const { left, bottom, top } = anchor().getBoundingClientRect();
    list.current.showPopover();
    const { offsetWidth: width, offsetHeight: height } = list.current;
    list.current.style.left = `${Math.max(8, Math.min(left, innerWidth - width - 8))}px`;
    list.current.style.top = `${bottom + height + 8 < innerHeight ? bottom + 6 : Math.max(8, top - height - 6)}px`;
    (list.current.querySelector("button:not(:disabled)") ?? list.current).focus();
  }, [token]);
  const toggle = (event) => event.newState === "closed" && onClose();
  const keys = (event) => {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    const buttons = [...list.current.querySelectorAll("button:not(:disabled)")];
    buttons.at((buttons.indexOf(document.activeElement) + step) % buttons.length)?.focus();
  };
  const all = [token, ...token.others].sort((a, b) => b.logprob - a.logprob);
  return html`<div popover="auto" ref=${list} class="alternatives" role="dialog" aria-labelledby=${title} onToggle=${toggle} onKeyDown=${keys} tabindex="-1">
    <p id=${title}>Pick a token to continue from it</p>
    ${all.map((one) => {
      const text = textOf([one]);
      const isEnd = END.test(text);
      return html`<button type="button" disabled=${one === token || isEnd || text.includes("\uFFFD")} onClick=${() => onPick(one)}>
        <code>${readable(text)}</code>
        <meter min="0" max="1" value=${Math.exp(one.logprob)} aria-hidden="true"></meter>
        <span>${percent(Math.exp(one.logprob))}</span>
      </button>`;
    })}
  </div>`;
}

function indexOf(element) {
  const { index } = element.dataset;
  return index === undefined ? null : Number(index);
}

function focus(frame, index) {
  frame.querySelector(`[data-index="${index}"]`)?.focus();
}

function shadeOf(logprob) {
  const probability = Math.exp(logprob);
  return LIMITS.filter((limit) => probability >= limit).length;
}

/** The likeliest tokens of a place, one per line. */
function summaryOf(token) {
  const all = [token, ...token.others].sort((a, b) => b.logprob - a.logprob);
  return all.map((one) => `${percent(Math.exp(one.logprob))}  ${readable(textOf([one]))}${one === token ? "  ←" : ""}`).join("\n");
}

/** The text of a token on one line. */
function readable(text) {
  return END.test(text) ? "end of the text" : JSON.stringify(text).slice(1, -1).replace(/^ | $/g, "␣");
}

/** A token as it is shown: with marks for what cannot be seen. */
function visible(text) {
  return text.replaceAll("\n", "↵\n") || "∅";
}

/** How sure the model was of the whole answer. */
function Sureness({ meanProbability, numDoubts }) {
  const doubts = numDoubts ? `, ${numDoubts} doubtful ${numDoubts === 1 ? "place" : "places"}` : "";
  return html`<span title=${SURENESS}>mean probability ${percent(meanProbability)}${doubts}</span>`;
}

function Legend() {
  return html`<p class="legend" aria-hidden="true"><span>unlikely</span>${[0, 1, 2, 3, 4].map((shade) => html`<i class="shade-${shade}"></i>`)}<span>likely</span></p>`;
}
