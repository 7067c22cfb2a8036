// Splits a growing text in Markdown into pieces that can be rendered one by one, so that a long
// answer costs no more per token than a short one.

const MOST_CHARACTERS = 3000;
const MOST_CODE_LINES = 100;
const FENCE = /^\s*(?:(?:[-*+]|\d+[.)])\s+)?(`{3,}|~{3,})\s*([^`]*)$/;
const LIST_ITEM = /^(?:[-*+]|\d{1,9}[.)])\s/;
const TABLE_RULE = /^\s*\|?\s*:?-+:?\s*(?:\|\s*:?-+:?\s*)*\|?\s*$/;

export class BlockSplitter {
  #lines = [];
  #numCharacters = 0;
  #partial = "";
  #fence = null;
  #isFirstOfFence = false;
  #mayEnd = false;
  #pieces = [];

  /** Takes more text. */
  push(text) {
    const lines = (this.#partial + text).split("\n");
    this.#partial = lines.pop();
    for (const line of lines) this.#take(line);
    while (this.#partial.length > MOST_CHARACTERS) this.#cutPartial();
  }

  /** Ends the text. */
  end() {
    if (this.#partial) this.#take(this.#partial);
    this.#partial = "";
    if (this.#fence) this.#endCode(true);
    else this.#endText();
  }

  /** Removes and returns the finished pieces: `{ kind: "text", text }`, or of code also `language`,
   * `isFirst` and `isLast`, as a long block of code is several pieces. */
  take() {
    return this.#pieces.splice(0);
  }

  /** The piece that is still growing, or null. */
  get open() {
    const text = [...this.#lines, this.#partial].join("\n");
    if (this.#fence) return this.#code(text, false);
    return text.trim() ? { kind: "text", text } : null;
  }

  #take(line) {
    if (this.#fence) this.#takeCode(line);
    else this.#takeText(line);
  }

  #takeCode(line) {
    const { mark } = this.#fence;
    const end = line.trim();
    if (end.startsWith(mark) && end === mark[0].repeat(end.length)) {
      this.#endCode(true);
      return;
    }
    this.#lines.push(line.startsWith(this.#fence.indent) ? line.slice(this.#fence.indent.length) : line);
    if (this.#lines.length >= MOST_CODE_LINES) this.#endCode(false);
  }

  #takeText(line) {
    const fence = line.match(FENCE);
    if (fence) {
      this.#endText();
      const language = fence[2].trim().split(/\s/)[0];
      this.#fence = { mark: fence[1], language, indent: line.match(/^\s*/)[0] };
      this.#isFirstOfFence = true;
      return;
    }
    if (line.trim() === "") {
      this.#mayEnd = this.#lines.length > 0;
    } else if (this.#mayEnd) {
      if (!this.#continues(line)) this.#endText();
      this.#mayEnd = false;
    }
    this.#lines.push(line);
    this.#numCharacters += line.length + 1;
    if (this.#numCharacters > MOST_CHARACTERS) this.#cutText();
  }

  /** Whether a line after an empty one belongs to the same piece. */
  #continues(line) {
    const text = this.#lines.join("\n");
    const openMath = text.split("$$").length % 2 === 0 || text.lastIndexOf("\\[") > text.lastIndexOf("\\]");
    const isList = LIST_ITEM.test(this.#lines[0]);
    return openMath || (isList && (LIST_ITEM.test(line) || /^(?: {2,}|\t)/.test(line)));
  }

  /** Ends a piece that has become too long. The rest of a table gets the same head. */
  #cutText() {
    const [head, rule] = this.#lines;
    const isTable = rule !== undefined && head.includes("|") && TABLE_RULE.test(rule);
    this.#endText();
    if (isTable) this.#lines = [head, rule];
  }

  /** Ends a piece within a line that has become too long. */
  #cutPartial() {
    const space = this.#partial.lastIndexOf(" ", MOST_CHARACTERS);
    const at = space > 0 ? space + 1 : MOST_CHARACTERS;
    this.#lines.push(this.#partial.slice(0, at));
    this.#partial = this.#partial.slice(at);
    if (this.#fence) this.#endCode(false);
    else this.#endText();
  }

  #endText() {
    const text = this.#lines.join("\n");
    if (text.trim()) this.#pieces.push({ kind: "text", text });
    this.#lines = [];
    this.#numCharacters = 0;
    this.#mayEnd = false;
  }

  #endCode(isLast) {
    this.#pieces.push(this.#code(this.#lines.join("\n"), isLast));
    this.#lines = [];
    this.#isFirstOfFence = false;
    if (isLast) this.#fence = null;
  }

  #code(text, isLast) {
    return { kind: "code", text, language: this.#fence.language, isFirst: this.#isFirstOfFence, isLast };
  }
}
