// The official client for Node, with the calls of its documentation. Prints what came as JSON.
import OpenAI, { toFile } from 'openai';
import { zodResponseFormat, zodTextFormat } from 'openai/helpers/zod';
import { z } from 'zod';

const client = new OpenAI({ maxRetries: 0 }); // OPENAI_BASE_URL and OPENAI_API_KEY
const model = 'smollm2-135m-instruct';
const messages = [{ role: 'user', content: 'Say this is a test' }];
const found = {};

const completion = await client.chat.completions.create({ model, messages, max_tokens: 32, temperature: 0 });
found.chat = completion.choices[0].message.content;

const stream = await client.chat.completions.create({
  model, messages, max_tokens: 32, temperature: 0, stream: true,
});
found.streamed = '';
for await (const chunk of stream) found.streamed += chunk.choices[0]?.delta?.content || '';

const runner = client.chat.completions.stream({ model, messages, max_tokens: 32, temperature: 0 });
found.helper = await runner.finalContent();

const Event = z.object({ name: z.string(), date: z.string(), participants: z.array(z.string()) });
const parsed = await client.chat.completions.parse({
  model,
  max_tokens: 300,
  temperature: 0,
  messages: [
    { role: 'system', content: 'Extract the event information.' },
    { role: 'user', content: 'Alice and Bob are going to a science fair on Friday.' },
  ],
  response_format: zodResponseFormat(Event, 'event'),
});
found.parsed = parsed.choices[0].message.parsed;

const tools = [{
  type: 'function',
  function: {
    name: 'get_weather',
    parameters: {
      type: 'object',
      properties: { location: { type: 'string' } },
      required: ['location'],
      additionalProperties: false,
    },
    strict: true,
  },
}];
const called = await client.chat.completions.create({
  model, max_tokens: 100, temperature: 0, tools, tool_choice: 'required',
  messages: [{ role: 'user', content: 'What is the weather like in Paris today?' }],
});
found.call = called.choices[0].message.tool_calls[0].function;

const response = await client.responses.create({ model, input: 'Say this is a test', max_output_tokens: 32, temperature: 0 });
found.response = response.output_text;
const again = await client.responses.retrieve(response.id);
found.retrieved = again.output_text;
const events = await client.responses.create({ model, input: 'What is the capital of France?', max_output_tokens: 32, temperature: 0, stream: true });
found.events = [];
for await (const event of events) found.events.push(event.type);
const structured = await client.responses.parse({
  model, input: 'Alice goes to a fair on Friday.', max_output_tokens: 300, temperature: 0,
  text: { format: zodTextFormat(Event, 'event') },
});
found.structured = structured.output_parsed;

const embedding = await client.embeddings.create({ model: 'all-minilm-l6-v2', input: 'Your text string goes here' });
found.embedding = embedding.data[0].embedding.length;

const drawn = await client.images.generate({ model: 'tandem-shapes', prompt: 'a red circle', size: '64x64' });
found.image = drawn.data[0].b64_json.length;
const file = await toFile(Buffer.from(drawn.data[0].b64_json, 'base64'), 'a.png', { type: 'image/png' });
const edited = await client.images.edit({ model: 'tandem-shapes', image: file, prompt: 'a blue circle', size: '64x64' });
found.edited = edited.data[0].b64_json.length;

found.models = [];
for await (const one of client.models.list()) found.models.push(one.id);

try {
  await client.chat.completions.create({ model: 'nothing', messages });
} catch (error) {
  found.error = { is: error instanceof OpenAI.NotFoundError, status: error.status, code: error.code };
}
const controller = new AbortController();
const cut = await client.chat.completions.create(
  { model, messages, max_tokens: 2000, stream: true }, { signal: controller.signal });
for await (const _ of cut) controller.abort();

console.log(JSON.stringify(found));
