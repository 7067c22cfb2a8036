// A value that components can watch.
import { useEffect, useState } from "./dom.js";

export class Signal {
  #value;
  #watchers = new Set();

  constructor(value) {
    this.#value = value;
  }

  get value() {
    return this.#value;
  }

  set value(value) {
    if (Object.is(value, this.#value)) return;
    this.#value = value;
    for (const watch of [...this.#watchers]) watch(value);
  }

  /** Calls `watch` with each new value. Returns the function that ends this. */
  watch(watch) {
    this.#watchers.add(watch);
    return () => this.#watchers.delete(watch);
  }
}

/** The value of a signal, for a component: it renders again when the value changes. */
export function useSignal(signal) {
  const [value, setValue] = useState(signal.value);
  useEffect(() => {
    setValue(() => signal.value);
    return signal.watch((value) => setValue(() => value));
  }, [signal]);
  return value;
}
