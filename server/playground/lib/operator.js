// What the operator has set for this page.
import { call } from "./api.js";
import { Signal } from "./signal.js";

/** `{ presets, keeps_history }`; null until it is read. */
export const operator = new Signal(null);

/** `operator`'s value, once it is read. Without it, the page works all the same. */
export const told = call("v1/playground")
  .catch(() => ({ presets: {}, keeps_history: false }))
  .then((value) => (operator.value = value));
