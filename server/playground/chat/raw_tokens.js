// Tokens of a raw completion. Its API gives their places in the text, where that of chats gives bytes.
const encoder = new TextEncoder();

export class RawTokens {
  #text;
  #begin;
  #last = null; // the newest token, its name, and where its text begins

  /** @param text what the answer has already. */
  constructor(text) {
    this.#text = [...text]; // characters, as the server counts them
    this.#begin = this.#text.length;
  }

  /** The tokens of a piece of the answer, from its text and the API's `logprobs`. Their bytes may grow with
   * the next piece. */
  take(text, { text_offset: places = [], token_logprobs: own, top_logprobs: top, tokens: names } = {}) {
    this.#text.push(...text);
    const tokens = names?.map((name, i) => {
      const others = Object.entries(top[i] ?? {}).filter(([other]) => other !== name);
      return { bytes: [], logprob: own[i], others: others.map(([other, logprob]) => ({ bytes: bytesOf(other), logprob })) };
    }) ?? [];
    const open = [...(this.#last ? [this.#last] : []), ...tokens.map((token, i) => ({ token, name: names[i], place: this.#begin + places[i] }))];
    open.forEach(({ token, name, place }, i) => {
      const part = this.#text.slice(place, open[i + 1]?.place).join("");
      token.bytes = bytesOf(part || name.replaceAll("\uFFFD", "")); // an end has a name, and no text
    });
    this.#last = open.at(-1) ?? null;
    return tokens;
  }
}

function bytesOf(text) {
  return [...encoder.encode(text)];
}
