// What every component needs: Preact, its hooks, and `html`, which reads components from templates.
import { Fragment, h } from "../vendor/preact.js";
import htm from "../vendor/htm.js";

export { Component, createContext, render } from "../vendor/preact.js";
export * from "../vendor/hooks.js";
export { Fragment };
export const html = htm.bind(h);
