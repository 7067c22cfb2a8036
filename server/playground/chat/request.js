// Requests: what is sent to the server for an answer, and the same as a command or a program.
import { BASE } from "../lib/api.js";

/** Settings of a conversation: `system`, `sampling` (fields of the API), `schema` and `tools` (JSON
 * texts), `effort` (of reasoning), `extra` (a JSON text of other fields), `showsTokens`,
 * `showsGrounds`, and `isRaw` (without the form of a chat). */
export const NO_SETTINGS = { system: "", sampling: {}, schema: "", tools: "", effort: "", extra: "", showsTokens: false, showsGrounds: false, isRaw: false };
const NUM_ALTERNATIVES = 8;
/** Without a limit, raw completions would end after 16 tokens, as OpenAI's do. */
const RAW_TOKENS = 512;

/** The body of the request for an answer that follows `path`. `prefix` is text that it begins with. */
export function bodyOf(model, settings, path, prefix = "") {
  const { sampling, schema, extra, showsTokens, isRaw } = { ...NO_SETTINGS, ...settings };
  const body = isRaw ? rawOf(model, path, prefix) : chatOf(model, { ...NO_SETTINGS, ...settings }, path, prefix);
  Object.assign(body, sampling);
  if (schema.trim()) {
    const json_schema = { name: "answer", strict: true, schema: read(schema, "The JSON schema") };
    body.response_format = { type: "json_schema", json_schema };
  }
  if (showsTokens) Object.assign(body, isRaw ? { logprobs: NUM_ALTERNATIVES } : { logprobs: true, top_logprobs: NUM_ALTERNATIVES }, { return_uncertainty: true });
  if (extra.trim()) Object.assign(body, read(extra, "The field “Other fields”"));
  return body;
}

/** The route for a body. */
export function routeOf(body) {
  return body.messages ? "v1/chat/completions" : "v1/completions";
}

function chatOf(model, { system, tools, effort }, path, prefix) {
  const body = { model, messages: path.map(wire) };
  if (system.trim()) body.messages.unshift({ role: "system", content: system });
  if (prefix) {
    body.messages.push({ role: "assistant", content: prefix });
    Object.assign(body, { add_generation_prompt: false, continue_final_message: true });
  }
  if (tools.trim()) body.tools = read(tools, "The list of tools").map(asTool);
  if (effort) body.reasoning_effort = effort;
  return body;
}

/** All that was written so far is one text, with which the model goes on. */
function rawOf(model, path, prefix) {
  return { model, prompt: path.map(({ content }) => content).join("") + prefix, max_tokens: RAW_TOKENS };
}

/** A JSON text of the settings.
 * @throws an error that says which one cannot be read, and where. */
export function read(text, name) {
  try {
    return JSON.parse(text);
  } catch (error) {
    throw new Error(`${name} is not valid JSON: ${error.message}.`);
  }
}

export function asCurl(body) {
  const json = JSON.stringify(body, null, 2).replaceAll("'", "'\\''");
  return `curl ${new URL(routeOf(body), BASE)} \\
  -H 'Content-Type: application/json' -H "Authorization: Bearer $TANDEM_API_KEY" \\
  -d '${json}'`;
}

export function asPython(body) {
  const { model, messages, prompt, ...rest } = body;
  const known = ["response_format", "tools", "reasoning_effort", "logprobs", "top_logprobs", "temperature", "top_p",
    "max_tokens", "seed", "stop", "frequency_penalty", "presence_penalty", "n"];
  const own = Object.entries(rest).filter(([name]) => known.includes(name));
  const more = Object.fromEntries(Object.entries(rest).filter(([name]) => !known.includes(name)));
  const options = own.map(([name, value]) => `    ${name}=${python(value, "    ")},\n`).join("");
  const extra = Object.keys(more).length ? `    extra_body=${python(more, "    ")},\n` : "";
  return `import os

from openai import OpenAI

client = OpenAI(base_url="${new URL("v1", BASE)}", api_key=os.environ.get("TANDEM_API_KEY", "none"))
answer = client.${messages ? "chat.completions" : "completions"}.create(
    model=${python(model)},
    ${messages ? `messages=${python(messages, "    ")}` : `prompt=${python(prompt)}`},
${options}${extra})
print(answer.choices[0].${messages ? "message.content" : "text"})
`;
}

function wire({ role, content, images, calls, callId }) {
  if (role === "tool") return { role, tool_call_id: callId, content };
  if (role === "assistant" && calls?.length) {
    const tool_calls = calls.map(({ id, name, arguments: text }) => ({ id, type: "function", function: { name, arguments: text } }));
    return { role, content: content || null, tool_calls };
  }
  if (!images?.length) return { role, content };
  const pictures = images.map((url) => ({ type: "image_url", image_url: { url } }));
  return { role, content: [...pictures, { type: "text", text: content }] };
}

/** A tool, given as in the API or as its function alone. */
const asTool = (tool) => (tool.function ? tool : { type: "function", function: tool });

/** A value of JSON as Python writes it. */
function python(value, indent = "") {
  if (value === null || value === undefined) return "None";
  if (value === true) return "True";
  if (value === false) return "False";
  if (typeof value !== "object") return JSON.stringify(value);
  const inner = `${indent}    `;
  const items = Array.isArray(value)
    ? value.map((one) => python(one, inner))
    : Object.entries(value).map(([key, one]) => `${JSON.stringify(key)}: ${python(one, inner)}`);
  const [open, close] = Array.isArray(value) ? "[]" : "{}";
  const line = open + items.join(", ") + close;
  if (line.length < 80 && !line.includes("\n")) return line;
  return `${open}\n${items.map((item) => `${inner}${item},\n`).join("")}${indent}${close}`;
}
