// Preferences: small JSON values that the browser keeps, shared by all tabs.
import { Signal, useSignal } from "./signal.js";

const PREFIX = "tandem.";
const signals = new Map();

/** The signal of a preference. Setting its value stores it. */
export function preference(name, fallback) {
  if (!signals.has(name)) signals.set(name, new Preference(name, fallback));
  return signals.get(name);
}

/** `[value, set]` of a preference, for a component. */
export function usePreference(name, fallback) {
  const signal = preference(name, fallback);
  return [useSignal(signal), (value) => (signal.value = value)];
}

class Preference extends Signal {
  constructor(name, fallback) {
    super(read(localStorage.getItem(PREFIX + name), fallback));
    this.watch((value) => localStorage.setItem(PREFIX + name, JSON.stringify(value)));
    addEventListener("storage", (event) => {
      if (event.key === PREFIX + name) this.value = read(event.newValue, fallback);
    });
  }
}

function read(text, fallback) {
  try {
    return text === null ? fallback : JSON.parse(text);
  } catch {
    return fallback;
  }
}
