// A run: one answer while it is written.
import { ApiError, stream } from "../lib/api.js";
import { catalogue, refreshModels } from "../lib/models.js";
import { changeMessage } from "./conversations.js";
import { RawTokens } from "./raw_tokens.js";
import { routeOf } from "./request.js";

const SAVE_EVERY_MS = 2000;
const MOST_TOKENS = 4096;
const ASK_AGAIN_MS = 1000;

/** The runs of this tab by the ids of their messages, also those that have ended: their texts are
 * shown already. */
export const runs = new Map();

export class Run {
  text = "";
  reasoning = "";
  calls = [];
  /** The first tokens with their alternatives: `{ bytes, logprob, others: [{ bytes, logprob }] }`. */
  tokens = [];
  usage = null;
  /** How sure the model was: the API's `uncertainty`. */
  uncertainty = null;
  error = null;
  finish = null;
  /** What it waits for, as a sentence, or null. */
  waitsFor = null;
  isEnded = false;

  #controller = new AbortController();
  #watchers = new Set();
  #frame = 0;
  #start = performance.now();
  #first = null;
  #last = null;
  #lastSave = 0;
  #raw;

  /** @param begin what the message has already: `text`, `tokens`. */
  constructor(conversationId, messageId, body, begin = {}) {
    this.conversationId = conversationId;
    this.messageId = messageId;
    this.body = body;
    this.text = begin.text ?? "";
    this.tokens = begin.tokens ?? [];
    this.keepsTokens = Boolean(body.logprobs);
    this.#raw = new RawTokens(this.text);
    runs.set(messageId, this);
  }

  /** Calls `watch` once per frame in which something was written. Returns the function that ends this. */
  watch(watch) {
    this.#watchers.add(watch);
    return () => this.#watchers.delete(watch);
  }

  stop() {
    this.#controller.abort();
  }

  async write() {
    try {
      await this.#writeOnceLoaded();
      this.finish ??= "lost";
    } catch (error) {
      if (error.name === "AbortError") this.finish = "stopped";
      else {
        this.finish = "lost";
        this.error = { message: error.message, code: error.code ?? null };
      }
    }
    this.waitsFor = null;
    this.isEnded = true;
    this.#save();
    this.#tell();
  }

  /** A model that is still being loaded answers once it is ready. */
  async #writeOnceLoaded() {
    for (;;) {
      try {
        return await this.#write();
      } catch (error) {
        if (!(error instanceof ApiError) || error.code !== "model_not_ready") throw error;
        await this.#untilLoaded(error);
      }
      this.#start = performance.now();
    }
  }

  async #write() {
    const body = { ...this.body, stream: true, stream_options: { include_usage: true } };
    const { signal } = this.#controller;
    for await (const { data } of stream(routeOf(body), { body, signal })) {
      this.waitsFor = null;
      this.#take(data);
      this.#frame ||= requestAnimationFrame(() => this.#tell());
      if (performance.now() - this.#lastSave > SAVE_EVERY_MS) this.#save();
    }
  }

  #take({ choices, usage }) {
    this.usage = usage ?? this.usage;
    const [choice] = choices;
    if (!choice) return;
    const { content, reasoning_content: reasoning, tool_calls: calls } = choice.delta ?? { content: choice.text };
    if (content || reasoning || calls) {
      this.#last = performance.now();
      this.#first ??= this.#last;
    }
    if (content) this.text += content;
    if (reasoning) this.reasoning += reasoning;
    for (const { index, id, function: { name, arguments: text } } of calls ?? []) {
      this.calls[index] ??= { id, name, arguments: "" };
      this.calls[index].arguments += text ?? "";
    }
    if (this.keepsTokens && !reasoning) this.#keep(choice.delta ? ofChat(choice.logprobs?.content ?? []) : this.#raw.take(content, choice.logprobs ?? {}));
    this.uncertainty = choice.uncertainty ?? this.uncertainty;
    this.finish = choice.finish_reason ?? this.finish;
  }

  #keep(tokens) {
    this.tokens.push(...tokens.slice(0, Math.max(0, MOST_TOKENS - this.tokens.length)));
  }

  #tell() {
    cancelAnimationFrame(this.#frame);
    this.#frame = 0;
    for (const watch of [...this.#watchers]) watch();
  }

  #save() {
    this.#lastSave = performance.now();
    const { text, reasoning, calls, tokens, error, finish } = this;
    const stats = this.#stats();
    const fields = { content: text, reasoning, calls: [...calls], tokens: [...tokens], error, stats };
    changeMessage(this.conversationId, this.messageId, { ...fields, finish: this.isEnded ? finish : "lost" });
  }

  #stats() {
    const numTokens = this.usage?.completion_tokens ?? null;
    const writingS = (this.#last - this.#first) / 1000;
    return {
      firstTokenS: this.#first === null ? null : (this.#first - this.#start) / 1000,
      numTokens,
      tokensPerS: numTokens > 1 && writingS > 0 ? (numTokens - 1) / writingS : null,
      meanProbability: this.uncertainty && Math.exp(this.uncertainty.mean_logprob),
      numDoubts: this.uncertainty?.low_confidence_spans.length ?? null,
      numPromptTokens: this.usage?.prompt_tokens ?? null,
      numCachedTokens: this.usage?.prompt_tokens_details?.cached_tokens ?? null,
    };
  }

  /** @throws `error`, if the model will not be loaded. */
  async #untilLoaded(error) {
    for (;;) {
      await refreshModels();
      const model = catalogue.value.models?.find(({ id }) => id === this.body.model);
      if (model?.state === "loaded") return;
      if (["failed", "sleeping", "unloaded"].includes(model?.state)) throw error;
      this.waitsFor = `${this.body.model} is loading${model?.progress ? `, ${Math.round(100 * model.progress)} %` : ""}`;
      this.#tell();
      await this.#pause(ASK_AGAIN_MS);
    }
  }

  #pause(ms) {
    const { signal } = this.#controller;
    return new Promise((resolve, reject) => {
      const end = () => reject(new DOMException("stopped", "AbortError"));
      signal.addEventListener("abort", end, { once: true });
      setTimeout(resolve, ms);
    });
  }
}

function ofChat(tokens) {
  return tokens.map(({ token, bytes, logprob, top_logprobs: top }) => {
    const others = top.filter((one) => one.token !== token).map(({ bytes, logprob }) => ({ bytes, logprob }));
    return { bytes, logprob, others };
  });
}

/** The text of tokens. */
export function textOf(tokens) {
  return new TextDecoder().decode(new Uint8Array(tokens.flatMap(({ bytes }) => bytes ?? [])));
}
