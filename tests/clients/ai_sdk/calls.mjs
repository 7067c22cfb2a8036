// The AI SDK over two of its providers, with the calls of its documentation. Prints what came as JSON.
import { createAnthropic } from '@ai-sdk/anthropic';
import { createOpenAICompatible } from '@ai-sdk/openai-compatible';
import { generateText, Output, streamText, tool } from 'ai';
import { z } from 'zod';

const baseURL = process.env.OPENAI_BASE_URL;
const name = 'smollm2-135m-instruct';
const providers = {
  compatible: createOpenAICompatible({
    name: 'tandem', baseURL, apiKey: 'unused', supportsStructuredOutputs: true,
  }),
  anthropic: createAnthropic({ baseURL, apiKey: 'unused' }),
};
const Recipe = z.object({
  name: z.string().max(40),
  steps: z.array(z.string().max(40)).max(3),
});
const weather = tool({
  description: 'Get the weather in a location',
  inputSchema: z.object({ location: z.string().max(30).describe('The location to get the weather for') }),
  execute: async ({ location }) => ({ location, temperature: 21 }),
});

async function ask(model) {
  const settings = { model, temperature: 0, maxRetries: 0 };
  const prompt = 'Write one sentence about the sea.';
  const whole = await generateText({ ...settings, prompt, maxOutputTokens: 32 });
  const stream = streamText({
    ...settings, prompt, maxOutputTokens: 32, onError: ({ error }) => { throw error; },
  });
  let streamed = '';
  for await (const part of stream.textStream) streamed += part;
  const recipe = await generateText({
    ...settings,
    prompt: 'Generate a lasagna recipe.',
    maxOutputTokens: 300,
    output: Output.object({ schema: Recipe }),
  });
  const called = await generateText({
    ...settings,
    prompt: 'What is the weather in San Francisco?',
    maxOutputTokens: 100,
    tools: { weather },
    toolChoice: 'required',
  });
  return {
    text: whole.text,
    reason: whole.finishReason,
    tokens: whole.usage.outputTokens,
    streamed,
    recipe: recipe.output,
    call: called.toolCalls[0],
    result: called.toolResults[0]?.output,
  };
}

const found = {};
for (const [provider, create] of Object.entries(providers)) found[provider] = await ask(create(name));
console.log(JSON.stringify(found));
