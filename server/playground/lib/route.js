// The address within the page: `#/VIEW/REST`.
import { Signal } from "./signal.js";

export const route = new Signal(read());

addEventListener("hashchange", () => (route.value = read()));

/** Opens a view, and in it what `rest` names. */
export function go(view, rest = "") {
  location.hash = rest ? `#/${view}/${rest}` : `#/${view}`;
}

function read() {
  const [, view = "", rest = ""] = location.hash.match(/^#\/([^/]*)\/?(.*)$/) ?? [];
  return { view, rest };
}
