// Icons: paths on a grid of 24, drawn with the colour of the text.
import { html } from "./dom.js";

const PATHS = {
  chat: "M5 18.5V20l3-1.5h9a3 3 0 0 0 3-3v-7a3 3 0 0 0-3-3H7a3 3 0 0 0-3 3v7c0 1.3.4 2.3 1 3Z",
  images: "M6 4h12a2 2 0 0 1 2 2v12a2 2 0 0 1-2 2H6a2 2 0 0 1-2-2V6a2 2 0 0 1 2-2Zm-2 12 4.5-4.5 4 4 2.5-2.5 5 5M15.5 9h.01",
  models: "M12 3.5 20 8l-8 4.5L4 8l8-4.5ZM4 12l8 4.5 8-4.5M4 16l8 4.5 8-4.5",
  menu: "M4 7h16M4 12h16M4 17h16",
  close: "M6 6l12 12M18 6 6 18",
  plus: "M12 5v14M5 12h14",
  send: "M12 19V5M6 11l6-6 6 6",
  stop: "M7 7h10v10H7z",
  copy: "M9 9h10v11H9zM5 15V4h10",
  edit: "M4 20h4L19 9l-4-4L4 16v4ZM13 7l4 4",
  redo: "M19 12a7 7 0 1 1-2.2-5.1M19 4v4h-4",
  trash: "M5 7h14M10 7V4.5h4V7M7 7l1 13h8l1-13M10 11v5M14 11v5",
  previous: "M14.5 6 8.5 12l6 6",
  next: "M9.5 6l6 6-6 6",
  down: "M6 9.5l6 6 6-6",
  tune: "M4 8h9M17 8h3M4 16h3M11 16h9M15 5.5v5M9 13.5v5",
  attach: "M8 12.5l5.5-5.5a3 3 0 0 1 4.2 4.2l-7.2 7.3a5 5 0 0 1-7-7.1L10.5 4.5",
  search: "M11 5a6 6 0 1 1 0 12 6 6 0 0 1 0-12ZM15.5 15.5 20 20",
  download: "M12 4v11M7 11l5 5 5-5M5 20h14",
  upload: "M12 16V5M7 9l5-5 5 5M5 20h14",
  check: "M5 12.5l4.5 4.5L19 7.5",
  auto: "M12 4a8 8 0 1 0 0 16V4Zm0 0a8 8 0 0 1 0 16",
  light: "M12 8a4 4 0 1 1 0 8 4 4 0 0 1 0-8ZM12 3v2M12 19v2M3 12h2M19 12h2M5.6 5.6 7 7M17 17l1.4 1.4M5.6 18.4 7 17M17 7l1.4-1.4",
  dark: "M20 14.5A8 8 0 1 1 9.5 4a6.5 6.5 0 0 0 10.5 10.5Z",
  more: "M5.5 12h1M11.5 12h1M17.5 12h1",
  play: "M8 5.5v13l10.5-6.5L8 5.5Z",
  compare: "M4 5h7v14H4zM13 5h7v14h-7z",
  brush: "M20 4c-5 2-9 6-11 9l2 2c3-2 7-6 9-11ZM8.5 13.5c-2 0-3 1.5-3 3S5 19 4 20c3 .6 7-.5 7-4",
  eraser: "M9 19 4.5 14.5a1.5 1.5 0 0 1 0-2L12 5l7 7-7 7H9Zm0 0h11M8 9l7 7",
  rectangle: "M5 6h14v12H5z",
  lasso: "M12 5c4.7 0 8.5 2.2 8.5 5s-3.8 5-8.5 5-8.5-2.2-8.5-5S7.3 5 12 5ZM7 14.3c-1 1-1.2 2.7 0 3.7s.8 2-.5 2.5",
  hand: "M8 12V6.5a1.5 1.5 0 0 1 3 0V11m0-1V4.8a1.5 1.5 0 0 1 3 0V11m0-.5V6.5a1.5 1.5 0 0 1 3 0V14c0 4-2 6.5-5.5 6.5S7 19 5.5 16l-1.3-2.6c-.6-1.4 1-2.4 2-1.4L8 14",
  undo: "M5 9h9a5 5 0 0 1 0 10h-4M5 9l4-4M5 9l4 4",
  forward: "M19 9h-9a5 5 0 0 0 0 10h4M19 9l-4-4M19 9l-4 4",
  invert: "M5 5h14v14H5zM5 19 19 5M12 16h4M14 14v4",
  zoomIn: "M11 5a6 6 0 1 1 0 12 6 6 0 0 1 0-12ZM15.5 15.5 20 20M8.5 11h5M11 8.5v5",
  zoomOut: "M11 5a6 6 0 1 1 0 12 6 6 0 0 1 0-12ZM15.5 15.5 20 20M8.5 11h5",
  fit: "M4 9V4h5M15 4h5v5M20 15v5h-5M9 20H4v-5",
  lock: "M6 11h12v9H6zM8.5 11V8a3.5 3.5 0 0 1 7 0v3",
  unlock: "M6 11h12v9H6zM8.5 11V8a3.5 3.5 0 0 1 6.8-1.2",
  enlarge: "M14 4h6v6M20 4l-7 7M10 20H4v-6M4 20l7-7",
  cutout: "M6 4.5a2.5 2.5 0 1 1 0 5 2.5 2.5 0 0 1 0-5ZM6 14.5a2.5 2.5 0 1 1 0 5 2.5 2.5 0 0 1 0-5ZM8.2 8.4 20 17M8.2 15.6 20 7",
  input: "M4 8V5h16v14H4v-3M3 12h10M10 8.5l3.5 3.5-3.5 3.5",
};

export function Icon({ name, size = 18 }) {
  return html`<svg class="icon" width=${size} height=${size} viewBox="0 0 24 24" aria-hidden="true">
    <path d=${PATHS[name]} />
  </svg>`;
}
