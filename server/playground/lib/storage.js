// What the page keeps in the browser's database. Each store holds values by their keys.
import * as idb from "../vendor/idb-keyval.js";

const DATABASE = "tandem";

/** A store of its own: `get`, `set`, `del`, `entries`, … of idb-keyval, without their last argument. */
export function openStore(name) {
  const store = idb.createStore(`${DATABASE}.${name}`, name);
  return {
    get: (key) => idb.get(key, store),
    set: (key, value) => idb.set(key, value, store),
    del: (key) => idb.del(key, store),
    entries: () => idb.entries(store),
    values: () => idb.values(store),
    clear: () => idb.clear(store),
  };
}
