// The mask editor: its tools, and the canvas.
import { html, useEffect, useId, useReducer, useRef } from "../lib/dom.js";
import { saveFile } from "../lib/files.js";
import { percent } from "../lib/format.js";
import { useSignal } from "../lib/signal.js";
import { announce, IconButton } from "../lib/ui.js";
import { MaskEditor } from "./mask.js";
import { FileButton } from "./parts.js";
import { loadPicture } from "./pictures.js";
import { FEATHER } from "./request.js";
import { problem, settings } from "./state.js";

const TOOLS = [
  ["brush", "Brush", "B"],
  ["eraser", "Eraser", "E"],
  ["rectangle", "Rectangle", "R"],
  ["lasso", "Lasso", "L"],
  ["hand", "Hand", "H"],
];
const KEYS = [
  ["Arrows", "move the cursor, with Shift by one pixel"],
  ["Space", "paint while held; with rectangle and lasso: begin and end"],
  ["[ ]", "size of the tool"],
  ["Ctrl+Z, Ctrl+Shift+Z", "undo, redo"],
  ["I, Delete", "invert, clear"],
  ["+ − 0", "zoom in, out, fit; Ctrl+wheel or two fingers, too"],
  ["Ctrl+Enter", "draw"],
];

/** Paints the mask of an input over its picture. */
export function MaskView({ source, onSubmit }) {
  const { blob, mask: layer } = source;
  const canvas = useRef(null);
  const editor = useRef(null);
  const submit = useRef(onSubmit);
  submit.current = onSubmit;
  const [, renderAgain] = useReducer((n) => n + 1, 0);
  const changed = () => {
    if (layer.share > 0) problem.value = null;
    renderAgain();
  };
  const { feather = FEATHER } = useSignal(settings);
  const help = useId();
  useEffect(() => {
    let isOver = false;
    loadPicture(blob).then((picture) => {
      if (isOver) return;
      editor.current = new MaskEditor(canvas.current, picture, layer, { onChange: changed, onSubmit: () => submit.current() });
      if (source.wantsFocus) canvas.current.focus();
      source.wantsFocus = false; // once
      renderAgain();
    });
    return () => {
      isOver = true;
      editor.current?.close();
      editor.current = null;
    };
  }, [blob, layer]);
  useEffect(() => {
    if (!editor.current || editor.current.feather === feather) return;
    editor.current.feather = feather;
    editor.current.draw();
  });
  return html`<div class="mask-editor">
    <${Toolbar} editor=${editor.current} layer=${layer} />
    <canvas ref=${canvas} class="mask-canvas" tabindex="0" role="application" aria-label="Mask" aria-describedby=${help}></canvas>
    <div class="mask-foot">
      <p class="hint" role="status">${layer.share === 0 ? "Paint over what should change." : `${percent(layer.share)} of the picture is marked.`}</p>
      <details class="mask-keys">
        <summary>Keys</summary>
        <dl id=${help}>${KEYS.map(([keys, does]) => html`<div><dt>${keys}</dt><dd>${does}</dd></div>`)}</dl>
      </details>
    </div>
  </div>`;
}

function Toolbar({ editor, layer }) {
  if (!editor) return html`<div class="mask-tools"></div>`;
  const load = async (file) => {
    try {
      await layer.load(file);
      editor.choose("brush");
    } catch (error) {
      problem.value = error;
    }
  };
  const act = (does, name) => () => {
    editor[does]();
    announce(name);
  };
  return html`<div class="mask-tools" role="toolbar" aria-label="Mask tools">
    <span class="group">
      ${TOOLS.map(([tool, label, key]) => html`<${IconButton} icon=${tool} label=${`${label} (${key})`}
        aria-pressed=${editor.tool === tool} onClick=${() => editor.choose(tool)} />`)}
    </span>
    <label class="tool-size ${editor.hasSize ? "" : "is-absent"}">
      <span>Size</span>
      <input type="range" min="1" max=${editor.maxSize} value=${editor.sizes[editor.tool] ?? 1}
        onInput=${(event) => editor.resizeTool(Number(event.target.value))} />
      <output>${editor.sizes[editor.tool]}</output>
    </label>
    <span class="group">
      <${IconButton} icon="undo" label="Undo" disabled=${!layer.canUndo} onClick=${act("undo", "Undone")} />
      <${IconButton} icon="forward" label="Redo" disabled=${!layer.canRedo} onClick=${act("redo", "Redone")} />
      <${IconButton} icon="invert" label="Invert the mask" onClick=${act("invert", "Inverted")} />
      <${IconButton} icon="trash" label="Clear the mask" onClick=${act("clear", "Cleared")} />
    </span>
    <span class="group">
      <${IconButton} icon="zoomOut" label="Zoom out" onClick=${() => editor.zoom(1 / 1.5)} />
      <${IconButton} icon="zoomIn" label="Zoom in" onClick=${() => editor.zoom(1.5)} />
      <${IconButton} icon="fit" label="Fit" onClick=${() => editor.fit()} />
    </span>
    <span class="group">
      <${FileButton} icon="upload" label="Load a mask" onFile=${load} />
      <${IconButton} icon="download" label="Save the mask" onClick=${async () => saveFile("mask.png", await layer.toBlob())} />
    </span>
  </div>`;
}
