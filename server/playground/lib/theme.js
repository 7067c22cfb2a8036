// The theme: the system's, light or dark.
import { Signal } from "./signal.js";

export const THEMES = ["auto", "light", "dark"];
export const theme = new Signal(document.documentElement.dataset.theme);

theme.watch((value) => {
  document.documentElement.dataset.theme = value;
  localStorage.setItem("tandem.theme", value);
});
