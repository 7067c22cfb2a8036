// A text that grows in the page while it is written: the same work per frame, however long the text
// is and however fast it comes.
import { html, useEffect, useRef } from "../lib/dom.js";
import { copyText } from "../lib/ui.js";
import { BlockSplitter } from "./blocks.js";
import { elementsOf, highlight } from "./safe.js";

const MOST_CHARACTERS_PER_FRAME = 2500;
/** What a piece costs, however short it is, as a number of characters. */
const LEAST_COST = 200;
const FRAME_MS = 40;
const PIECES_PER_CHAPTER = 24;
/** The piece that grows is rendered again at most this share of the time. */
const MOST_SHARE = 0.25;

export class GrowingText {
  #element;
  #chapter = null; // pieces that the browser lays out, or skips, together
  #onRender;
  #splitter = new BlockSplitter();
  #pieces = [];
  #open = null; // the element of the piece that grows
  #code = null; // the element that takes the next piece of code
  #frame = 0;
  #isEnded = false;
  #isStale = false;
  #nextRender = 0;

  constructor(element, onRender = () => {}) {
    this.#element = element;
    this.#onRender = onRender;
  }

  push(text) {
    this.#splitter.push(text);
    this.#schedule();
  }

  end() {
    if (this.#isEnded) return;
    this.#isEnded = true;
    this.#splitter.end();
    this.#schedule();
  }

  stop() {
    cancelAnimationFrame(this.#frame);
  }

  #schedule() {
    this.#isStale = true;
    this.#frame ||= requestAnimationFrame(() => this.#render());
  }

  #render() {
    this.#frame = 0;
    const start = performance.now();
    this.#pieces.push(...this.#splitter.take());
    const now = this.#pieces.splice(0, numWithin(this.#pieces));
    for (const piece of now) this.#finish(piece);
    let hasChanged = now.length > 0;
    const isBehind = this.#pieces.length > 0;
    if (!isBehind && this.#isStale && (this.#isEnded || start >= this.#nextRender)) {
      this.#renderOpen();
      hasChanged = true;
      this.#isStale = false;
      this.#nextRender = start + Math.max(FRAME_MS, (performance.now() - start) / MOST_SHARE);
    }
    if (hasChanged) this.#onRender();
    if (isBehind || this.#isStale) this.#frame = requestAnimationFrame(() => this.#render());
  }

  #finish(piece) {
    if (piece.kind === "text") {
      this.#textElement().replaceChildren(elementsOf(piece.text));
      this.#open = null;
    } else {
      const part = this.#codeElement(piece);
      part.firstChild.data = piece.text;
      highlight(part, piece.language);
      this.#open = null;
      if (piece.isLast) this.#code = null;
    }
  }

  #renderOpen() {
    const piece = this.#splitter.open;
    if (piece === null) {
      this.#open?.remove();
      this.#open = null;
    } else if (piece.kind === "text") {
      this.#textElement().replaceChildren(elementsOf(piece.text));
    } else {
      this.#codeElement(piece).firstChild.data = piece.text;
    }
  }

  #textElement() {
    if (this.#open?.className !== "block") {
      this.#open?.remove();
      this.#open = document.createElement("div");
      this.#open.className = "block";
      this.#append(this.#open);
    }
    return this.#open;
  }

  #append(block) {
    if (!this.#chapter || this.#chapter.childElementCount >= PIECES_PER_CHAPTER) {
      this.#chapter = document.createElement("div");
      this.#chapter.className = "chapter";
      this.#element.append(this.#chapter);
    }
    this.#chapter.append(block);
  }

  #codeElement({ language }) {
    if (this.#open?.className === "code-part") return this.#open;
    this.#open?.remove();
    if (!this.#code) {
      const [frame, code] = codeFrame(language);
      this.#append(frame);
      this.#code = code;
    }
    this.#open = document.createElement("span");
    this.#open.className = "code-part";
    this.#open.append("");
    this.#code.append(this.#open);
    return this.#open;
  }
}

/** How many of the first pieces a frame takes on: at least one. */
function numWithin(pieces) {
  let cost = 0;
  const num = pieces.findIndex(({ text }, i) => (cost += Math.max(LEAST_COST, text.length)) > MOST_CHARACTERS_PER_FRAME && i > 0);
  return num < 0 ? pieces.length : num;
}

function codeFrame(language) {
  const frame = document.createElement("div");
  frame.className = "block code";
  const head = document.createElement("div");
  head.className = "code-head";
  const name = document.createElement("span");
  name.textContent = language.slice(0, 40);
  const button = document.createElement("button");
  button.type = "button";
  button.className = "quiet";
  button.textContent = "Copy";
  button.ariaLabel = "Copy the code";
  const pre = document.createElement("pre");
  pre.tabIndex = 0;
  pre.ariaLabel = language ? `Code, ${language.slice(0, 40)}` : "Code";
  pre.role = "region";
  const code = document.createElement("code");
  button.onclick = async () => {
    await copyText([...code.children].map((part) => part.textContent).join("\n"));
    button.textContent = "Copied";
    setTimeout(() => (button.textContent = "Copy"), 1500);
  };
  head.append(name, button);
  pre.append(code);
  frame.append(head, pre);
  return [frame, code];
}

/** A text in Markdown. `run`, if given, goes on writing it: a `Run`, whose `part` this shows. */
export function Markdown({ text, run, part = "text", onRender, class: more = "" }) {
  const ref = useRef(null);
  useEffect(() => {
    const growing = new GrowingText(ref.current, onRender);
    if (!run) {
      growing.push(text);
      growing.end();
      return () => growing.stop();
    }
    let shown = 0;
    const show = () => {
      const now = run[part];
      if (now.length > shown) growing.push(now.slice(shown));
      shown = now.length;
      if (run.isEnded) growing.end();
    };
    show();
    const unwatch = run.watch(show);
    return () => {
      unwatch();
      growing.stop();
    };
  }, [run, run ? null : text]);
  return html`<div class="markdown ${more}" ref=${ref}></div>`;
}
