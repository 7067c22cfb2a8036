// The settings that a picture's file records. The server reads them, from PNG, JPEG and WebP.
import { call } from "../lib/api.js";
import { dataUrl } from "./pictures.js";
import { readBody } from "./request.js";

/** `{ body, warnings }`; body is null if the file records nothing. */
export async function readSettings(file) {
  const { items, parameters, warnings } = await call("sdapi/v1/png-info", { body: { image: await dataUrl(file) } });
  if (items.tandem) return { body: readBody(items.tandem), warnings };
  return { body: parameters["Steps"] ? ofOthers(parameters) : null, warnings };
}

/** A body from the settings of A1111 and others. Samplers and models have other names there. */
function ofOthers(found) {
  const body = { prompt: found["Prompt"], prompt_syntax: "a1111", num_inference_steps: Number(found["Steps"]) };
  if (found["Negative prompt"]) body.negative_prompt = found["Negative prompt"];
  if (found["CFG scale"]) body.guidance_scale = Number(found["CFG scale"]);
  if (found["Seed"]) body.seed = found["Seed"];
  if (found["Size-1"]) body.size = `${found["Size-1"]}x${found["Size-2"]}`;
  return body;
}
