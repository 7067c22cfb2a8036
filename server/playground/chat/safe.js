// From text that a model wrote to elements. Whatever it says, no script runs, nothing is loaded and
// nothing of the page is imitated: HTML is shown as text, pictures become links, and DOMPurify lets
// only the elements of a text through.
import purify from "../vendor/purify.js";
import { Marked } from "../vendor/marked.js";

const LONGEST_FORMULA = 2000;
const LONGEST_HIGHLIGHT = 10_000;
const RULES = {
  ALLOWED_TAGS: "p br hr ul ol li blockquote pre code em strong del a table thead tbody tr th td h3 span".split(" "),
  ALLOWED_ATTR: ["href", "title", "start", "align", "class"],
  ALLOWED_URI_REGEXP: /^(?:https?|mailto):/i,
  ALLOW_DATA_ATTR: false,
  ALLOW_ARIA_ATTR: false,
  RETURN_DOM_FRAGMENT: true,
};

const escape = (text) =>
  text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;").replaceAll('"', "&quot;");

const markdown = new Marked({
  gfm: true,
  renderer: {
    html: ({ text }) => escape(text),
    image: ({ href, text }) => `<a href="${escape(href)}">${escape(text || href)}</a>`,
    checkbox: ({ checked }) => (checked ? "☑ " : "☐ "),
    heading({ tokens, depth }) {
      return `<h3 class="level-${depth}">${this.parser.parseInline(tokens)}</h3>`;
    },
  },
  extensions: [formula("inlineFormula", "inline"), formula("formula", "block")],
});

/** The elements of a piece of Markdown. */
export function elementsOf(text) {
  const fragment = purify.sanitize(markdown.parse(text), RULES);
  for (const link of fragment.querySelectorAll("a")) {
    link.target = "_blank";
    link.rel = "noopener noreferrer nofollow";
    if (!link.title && link.href) link.title = link.href;
  }
  for (const table of fragment.querySelectorAll("table")) table.replaceWith(scrolled(table.cloneNode(true)));
  for (const span of fragment.querySelectorAll(".formula")) drawFormula(span);
  return fragment;
}

/** Colours a piece of code, once the highlighter is there. */
export async function highlight(element, language) {
  const text = element.textContent;
  if (text.length > LONGEST_HIGHLIGHT || !language) return;
  const { default: highlighter } = await import("../vendor/highlight.js");
  if (!highlighter.getLanguage(language) || element.textContent !== text) return;
  const { value } = highlighter.highlight(text, { language, ignoreIllegals: true });
  element.replaceChildren(purify.sanitize(value, RULES));
}

function scrolled(table) {
  const frame = document.createElement("div");
  frame.className = "table-frame";
  frame.tabIndex = 0;
  frame.role = "region";
  frame.ariaLabel = "Table";
  frame.append(table);
  return frame;
}

/** Draws a formula in place of its source, which remains if it cannot be drawn. temml makes elements,
 * not HTML. */
async function drawFormula(span) {
  const text = span.textContent;
  if (text.length > LONGEST_FORMULA) return;
  const { default: temml } = await import("../vendor/temml.js");
  const displayMode = span.classList.contains("display");
  const drawn = document.createElement("span");
  try {
    temml.render(text, drawn, { displayMode, trust: false, maxSize: [20, 240], maxExpand: 200, throwOnError: true });
  } catch {
    return; // the source is what the model wrote
  }
  for (const one of drawn.querySelectorAll("[id], [href]")) {
    one.removeAttribute("id");
    one.removeAttribute("href");
  }
  span.replaceChildren(...drawn.childNodes);
}

/** marked's extension for $…$, $$…$$, \(…\) and \[…\]. */
function formula(name, level) {
  const rule =
    level === "inline"
      ? /^(?:\$\$([^$]+?)\$\$|\\\[([\s\S]+?)\\\]|\\\(([\s\S]+?)\\\)|\$(?!\s)((?:\\.|[^$\n\\])+?)(?<!\s)\$(?!\d))/
      : /^ {0,3}(?:\$\$([\s\S]+?)\$\$|\\\[([\s\S]+?)\\\])\s*(?:\n|$)/;
  return {
    name,
    level,
    start: (text) => text.match(level === "inline" ? /\$|\\[[(]/ : /(?:^|\n) {0,3}(?:\$\$|\\\[)/)?.index,
    tokenizer(text) {
      const [raw, dollars, brackets, parentheses, dollar] = text.match(rule) ?? [];
      if (raw === undefined) return undefined;
      return { type: name, raw, text: dollars ?? brackets ?? parentheses ?? dollar, display: (dollars ?? brackets) !== undefined };
    },
    renderer: ({ text, display }) => {
      const span = `<span class="formula${display ? " display" : ""}">${escape(text.trim())}</span>`;
      return level === "block" ? `<p>${span}</p>` : span;
    },
  };
}
