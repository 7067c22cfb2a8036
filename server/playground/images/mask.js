// A mask over a picture: the layer that is painted, its history, and the canvas on which both show.
import { loadPicture } from "./pictures.js";

const COLOUR = "rgb(226 52 104)";
const COLOUR_WORD = 0x6834e2; // its bytes as pixels hold them: blue, green, red
const MAX_STEPS = 100;
const MAX_HISTORY_BYTES = 128e6;
const MAX_ZOOM = 32;

/** The layer: opaque where the picture should change. */
export class MaskLayer {
  constructor(width, height) {
    this.canvas = document.createElement("canvas");
    Object.assign(this.canvas, { width, height });
    this.context = this.canvas.getContext("2d", { willReadFrequently: true });
    Object.assign(this.context, { fillStyle: COLOUR, strokeStyle: COLOUR, lineCap: "round", lineJoin: "round" });
    this.steps = [this.#alpha()];
    this.at = 0;
  }

  get width() {
    return this.canvas.width;
  }

  get height() {
    return this.canvas.height;
  }

  line(from, to, diameter, isErasing) {
    this.#paint(isErasing, (context) => {
      context.lineWidth = diameter;
      context.beginPath();
      context.moveTo(from.x, from.y);
      context.lineTo(to.x + 1e-3, to.y); // a line without a length would leave nothing
      context.stroke();
    });
  }

  /** Fills the shape with these corners. */
  fill(points, isErasing) {
    this.#paint(isErasing, (context) => {
      context.beginPath();
      for (const { x, y } of points) context.lineTo(x, y);
      context.fill();
    });
  }

  clear() {
    this.context.clearRect(0, 0, this.width, this.height);
    this.commit();
  }

  invert() {
    this.context.globalCompositeOperation = "xor";
    this.context.fillRect(0, 0, this.width, this.height);
    this.context.globalCompositeOperation = "source-over";
    this.commit();
  }

  /** Takes the mask of a file: what is transparent, or else what is bright, as the server does. */
  async load(blob) {
    const picture = await loadPicture(blob);
    this.context.clearRect(0, 0, this.width, this.height);
    this.context.drawImage(picture, 0, 0, this.width, this.height);
    const { data } = this.context.getImageData(0, 0, this.width, this.height);
    const opacity = this.#alpha();
    const isAlpha = opacity.some((value) => value < 255);
    const brightness = (i) => 0.299 * data[4 * i] + 0.587 * data[4 * i + 1] + 0.114 * data[4 * i + 2];
    this.#show(opacity.map((value, i) => (isAlpha ? 255 - value : brightness(i))));
    this.commit();
  }

  /** Ends a step that `undo` takes back. */
  commit() {
    this.steps.length = this.at + 1;
    this.steps.push(this.#alpha());
    const most = Math.max(2, Math.min(MAX_STEPS, Math.floor(MAX_HISTORY_BYTES / (this.width * this.height))));
    this.steps.splice(0, this.steps.length - most);
    this.at = this.steps.length - 1;
  }

  get canUndo() {
    return this.at > 0;
  }

  get canRedo() {
    return this.at < this.steps.length - 1;
  }

  undo() {
    if (this.canUndo) this.#show(this.steps[(this.at -= 1)]);
  }

  redo() {
    if (this.canRedo) this.#show(this.steps[(this.at += 1)]);
  }

  /** The share of the picture that is marked. */
  get share() {
    const alpha = this.steps[this.at];
    if (this.counted?.alpha !== alpha) {
      let marked = 0;
      for (const value of alpha) marked += value > 127;
      this.counted = { alpha, share: marked / alpha.length };
    }
    return this.counted.share;
  }

  /** The mask as the server blends it: from nothing at its edge to all of it `feather` pixels within. */
  softened(feather) {
    const alpha = this.steps[this.at];
    if (this.soft?.alpha !== alpha || this.soft.feather !== feather) {
      const [outside, canvas] = [0, 1].map(() => Object.assign(document.createElement("canvas"), { width: this.width, height: this.height }));
      const around = outside.getContext("2d");
      around.fillRect(0, 0, this.width, this.height);
      around.globalCompositeOperation = "destination-out";
      around.drawImage(this.canvas, 0, 0);
      const context = canvas.getContext("2d");
      context.drawImage(this.canvas, 0, 0);
      context.globalCompositeOperation = "destination-out";
      context.filter = `blur(${feather / 2}px)`;
      for (let i = 0; i < 2; i += 1) context.drawImage(outside, 0, 0);
      this.soft = { alpha, feather, canvas };
    }
    return this.soft.canvas;
  }

  /** The mask as a PNG file: white where the picture should change, else black. */
  toBlob() {
    const canvas = document.createElement("canvas");
    Object.assign(canvas, { width: this.width, height: this.height });
    const grey = this.#image((value) => 0xff000000 | (value * 0x010101));
    canvas.getContext("2d").putImageData(grey, 0, 0);
    return new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
  }

  #paint(isErasing, paint) {
    this.context.globalCompositeOperation = isErasing ? "destination-out" : "source-over";
    paint(this.context);
    this.context.globalCompositeOperation = "source-over";
  }

  #alpha() {
    const { data } = this.context.getImageData(0, 0, this.width, this.height);
    const alpha = new Uint8Array(data.length / 4);
    for (let i = 0; i < alpha.length; i += 1) alpha[i] = data[4 * i + 3];
    return alpha;
  }

  #show(alpha) {
    this.context.putImageData(this.#image((value) => (value << 24) | COLOUR_WORD, alpha), 0, 0);
  }

  /** Pixels made from opacities, by a function from one to the 32 bits of a pixel. */
  #image(pixelOf, alpha = this.steps[this.at]) {
    const image = new ImageData(this.width, this.height);
    const pixels = new Uint32Array(image.data.buffer);
    for (let i = 0; i < pixels.length; i += 1) pixels[i] = pixelOf(alpha[i]);
    return image;
  }
}

/** The canvas on which a mask is painted, by pointer or by keyboard.
 *
 * `onChange` is called after each step and each change of tool, size or zoom, `onSubmit` when the
 * reader presses Ctrl+Enter. */
export class MaskEditor {
  constructor(canvas, picture, layer, { onChange, onSubmit }) {
    Object.assign(this, { canvas, picture, layer, onChange, onSubmit });
    this.tool = "brush";
    this.feather = 0; // pixels over which the edge is shown to soften
    const size = Math.max(1, Math.round(Math.min(layer.width, layer.height) / 4));
    this.sizes = { brush: size, eraser: size };
    this.cursor = { x: layer.width / 2, y: layer.height / 2 };
    this.scale = 1;
    this.offset = { x: 0, y: 0 };
    this.pointers = new Map();
    this.isPainting = false;
    this.isKeyboard = false;
    this.points = [];
    this.ended = new AbortController();
    const on = (name, handle, options) => canvas.addEventListener(name, handle.bind(this), { signal: this.ended.signal, ...options });
    on("pointerdown", this.#press);
    on("pointermove", this.#move);
    on("pointerup", this.#release);
    on("pointercancel", this.#release);
    on("pointerleave", () => this.draw());
    on("wheel", this.#wheel, { passive: false });
    on("keydown", this.#keydown);
    on("keyup", this.#keyup);
    on("focus", () => this.draw());
    on("blur", this.#blur);
    this.resizing = new ResizeObserver(() => this.#resize());
    this.resizing.observe(canvas);
  }

  close() {
    this.ended.abort();
    this.resizing.disconnect();
  }

  choose(tool) {
    this.#end();
    this.tool = tool;
    this.#changed();
  }

  /** Whether the tool has a size; each such tool has one of its own. */
  get hasSize() {
    return this.tool in this.sizes;
  }

  get maxSize() {
    return Math.max(this.layer.width, this.layer.height);
  }

  resizeTool(size) {
    if (!this.hasSize) return;
    this.sizes[this.tool] = Math.min(this.maxSize, Math.max(1, Math.round(size)));
    this.#changed();
  }

  undo() {
    this.#end();
    this.layer.undo();
    this.#changed();
  }

  redo() {
    this.layer.redo();
    this.#changed();
  }

  invert() {
    this.layer.invert();
    this.#changed();
  }

  clear() {
    this.layer.clear();
    this.#changed();
  }

  fit() {
    const { clientWidth: width, clientHeight: height } = this.canvas;
    this.scale = this.fitted = Math.min(width / this.layer.width, height / this.layer.height);
    this.offset = { x: (width - this.scale * this.layer.width) / 2, y: (height - this.scale * this.layer.height) / 2 };
    this.#changed();
  }

  /** Zooms about a point of the canvas, or about its middle. */
  zoom(factor, at = { x: this.canvas.clientWidth / 2, y: this.canvas.clientHeight / 2 }) {
    const scale = Math.min(MAX_ZOOM, Math.max(this.fitted, this.scale * factor));
    if (scale === this.fitted) return this.fit();
    const held = this.#toPicture(at);
    this.scale = scale;
    this.offset = { x: at.x - scale * held.x, y: at.y - scale * held.y };
    this.#keepInView();
    this.#changed();
  }

  draw() {
    cancelAnimationFrame(this.frame);
    this.frame = requestAnimationFrame(() => this.#draw());
  }

  #resize() {
    const ratio = devicePixelRatio;
    this.canvas.width = Math.round(this.canvas.clientWidth * ratio);
    this.canvas.height = Math.round(this.canvas.clientHeight * ratio);
    this.fit();
  }

  #changed() {
    this.draw();
    this.onChange();
  }

  #toPicture({ x, y }) {
    return { x: (x - this.offset.x) / this.scale, y: (y - this.offset.y) / this.scale };
  }

  #pan(dx, dy) {
    if (this.scale === this.fitted) return;
    this.offset = { x: this.offset.x + dx, y: this.offset.y + dy };
    this.#keepInView();
    this.draw();
  }

  /** Leaves no empty room beside a picture that is larger than the canvas. */
  #keepInView() {
    const side = (offset, room, picture) =>
      picture <= room ? (room - picture) / 2 : Math.min(0, Math.max(room - picture, offset));
    this.offset = {
      x: side(this.offset.x, this.canvas.clientWidth, this.scale * this.layer.width),
      y: side(this.offset.y, this.canvas.clientHeight, this.scale * this.layer.height),
    };
  }

  // The stroke: it begins, goes on to points of the picture, and ends as a step.

  #begin(point, isErasing = this.tool === "eraser") {
    this.isPainting = true;
    this.isErasing = isErasing;
    this.cursor = point;
    this.points = [point];
    if (this.hasSize) this.layer.line(point, point, this.sizes[this.tool], isErasing);
    this.draw();
  }

  #goOn(point) {
    if (this.isPainting && this.hasSize) this.layer.line(this.cursor, point, this.sizes[this.tool], this.isErasing);
    else if (this.isPainting && this.tool === "rectangle") this.points = [this.points[0], point];
    else if (this.isPainting) this.points.push(point);
    this.cursor = point;
    this.draw();
  }

  #end() {
    if (!this.isPainting) return;
    this.isPainting = false;
    if (!this.hasSize) this.layer.fill(this.#shape(), this.isErasing);
    this.points = [];
    this.layer.commit();
    this.#changed();
  }

  #shape() {
    const [first, last] = [this.points[0], this.points.at(-1)];
    if (this.tool === "lasso") return this.points;
    return [first, { x: last.x, y: first.y }, last, { x: first.x, y: last.y }];
  }

  // Pointers: one paints, two pan and zoom, the middle button and the hand pan.

  #press(event) {
    if (event.button > 1) return;
    event.preventDefault();
    this.canvas.focus({ preventScroll: true });
    this.canvas.setPointerCapture(event.pointerId);
    this.isKeyboard = false;
    this.pointers.set(event.pointerId, at(event));
    if (this.pointers.size === 2) this.#abandon();
    else if (this.pointers.size === 1 && event.button === 0 && this.tool !== "hand")
      this.#begin(this.#toPicture(at(event)), this.tool === "eraser" || event.altKey);
  }

  #move(event) {
    const now = at(event);
    const before = this.pointers.get(event.pointerId);
    this.isKeyboard = false;
    if (before && this.pointers.size === 2) this.#pinch(event.pointerId, now);
    else if (before && !this.isPainting) this.#pan(now.x - before.x, now.y - before.y);
    else for (const one of event.getCoalescedEvents?.() ?? [event]) this.#goOn(this.#toPicture(at(one)));
    if (before) this.pointers.set(event.pointerId, now);
  }

  #release(event) {
    if (this.pointers.delete(event.pointerId)) this.#end();
  }

  #pinch(id, now) {
    const other = [...this.pointers].find(([key]) => key !== id)[1];
    const before = this.pointers.get(id);
    const length = (point) => Math.hypot(point.x - other.x, point.y - other.y) || 1;
    this.zoom(length(now) / length(before), { x: (now.x + other.x) / 2, y: (now.y + other.y) / 2 });
    this.#pan((now.x - before.x) / 2, (now.y - before.y) / 2);
  }

  /** Takes back what the first finger painted before the second one came. */
  #abandon() {
    if (!this.isPainting) return;
    this.isPainting = false;
    this.points = [];
    this.layer.commit();
    this.layer.undo();
    this.layer.steps.length = this.layer.at + 1;
    this.#changed();
  }

  #wheel(event) {
    const isZoom = event.ctrlKey || event.metaKey;
    if (!isZoom && this.scale === this.fitted) return; // the page scrolls
    event.preventDefault();
    if (isZoom) this.zoom(Math.exp(-event.deltaY / 200), at(event));
    else this.#pan(-event.deltaX, -event.deltaY);
  }

  // The keyboard moves a cursor; Space paints while it is held, or sets the corners of a shape.

  #keydown(event) {
    const handle = this.#shortcut(event);
    if (!handle) return;
    event.preventDefault();
    event.stopPropagation();
    handle();
  }

  #shortcut(event) {
    const { key } = event;
    if (event.ctrlKey || event.metaKey) {
      if (key === "Enter") return this.onSubmit;
      if (key.toLowerCase() === "z") return event.shiftKey ? () => this.redo() : () => this.undo();
      if (key.toLowerCase() === "y") return () => this.redo();
      return null;
    }
    if (event.altKey) return null;
    const tool = { b: "brush", e: "eraser", r: "rectangle", l: "lasso", h: "hand" }[key.toLowerCase()];
    if (tool) return () => this.choose(tool);
    const step = event.shiftKey ? 1 : Math.max(1, Math.round((this.hasSize ? this.sizes[this.tool] : this.maxSize / 16) / 2));
    const [dx, dy] = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[key] ?? [];
    if (dx !== undefined) return () => this.#step(step * dx, step * dy);
    return {
      " ": () => !event.repeat && this.#penDown(),
      "[": () => this.resizeTool(Math.min(this.sizes[this.tool] - 1, this.sizes[this.tool] / 1.2)),
      "]": () => this.resizeTool(Math.max(this.sizes[this.tool] + 1, this.sizes[this.tool] * 1.2)),
      "+": () => this.zoom(1.5, this.#onCanvas()),
      "=": () => this.zoom(1.5, this.#onCanvas()),
      "-": () => this.zoom(1 / 1.5, this.#onCanvas()),
      0: () => this.fit(),
      i: () => this.invert(),
      Delete: () => this.clear(),
      Escape: this.isPainting ? () => this.#abandon() : null,
    }[key];
  }

  #keyup(event) {
    if (event.key === " " && this.hasSize) this.#end();
  }

  #blur() {
    this.#end();
    this.draw();
  }

  #penDown() {
    this.isKeyboard = true;
    if (this.isPainting) this.#end();
    else if (this.tool !== "hand") this.#begin(this.cursor);
  }

  #step(dx, dy) {
    this.isKeyboard = true;
    if (this.tool === "hand") return this.#pan(-dx * this.scale, -dy * this.scale);
    const inside = (value, most) => Math.min(most, Math.max(0, value));
    this.#goOn({ x: inside(this.cursor.x + dx, this.layer.width), y: inside(this.cursor.y + dy, this.layer.height) });
    const { x, y } = this.#onCanvas();
    const { clientWidth: width, clientHeight: height } = this.canvas;
    this.#pan(Math.max(0, 20 - x) - Math.max(0, x - width + 20), Math.max(0, 20 - y) - Math.max(0, y - height + 20));
    this.onChange();
  }

  #onCanvas() {
    return { x: this.offset.x + this.scale * this.cursor.x, y: this.offset.y + this.scale * this.cursor.y };
  }

  #draw() {
    const { canvas, layer, scale, offset } = this;
    const context = canvas.getContext("2d");
    const ratio = devicePixelRatio;
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.clearRect(0, 0, canvas.width, canvas.height);
    context.setTransform(ratio * scale, 0, 0, ratio * scale, ratio * offset.x, ratio * offset.y);
    context.imageSmoothingEnabled = scale < 6;
    context.imageSmoothingQuality = "high";
    context.drawImage(this.picture, 0, 0, layer.width, layer.height);
    context.globalAlpha = 0.55;
    context.drawImage(this.isPainting || !this.feather ? layer.canvas : layer.softened(this.feather), 0, 0);
    context.globalAlpha = 1;
    if (this.points.length && !this.hasSize) this.#outline(context, this.#shape(), [6 / scale, 4 / scale]);
    if (canvas.matches(":hover, :focus-visible") || this.isKeyboard) this.#drawCursor(context);
  }

  #drawCursor(context) {
    if (this.tool === "hand") return;
    const { x, y } = this.cursor;
    const arm = 8 / this.scale;
    if (this.hasSize) this.#stroke(context, () => context.arc(x, y, this.sizes[this.tool] / 2, 0, 2 * Math.PI));
    if (!this.hasSize || this.isKeyboard)
      this.#stroke(context, () => {
        context.moveTo(x - arm, y);
        context.lineTo(x + arm, y);
        context.moveTo(x, y - arm);
        context.lineTo(x, y + arm);
      });
  }

  #outline(context, points, dash) {
    context.setLineDash(dash);
    this.#stroke(context, () => {
      for (const { x, y } of points) context.lineTo(x, y);
      context.closePath();
    });
    context.setLineDash([]);
  }

  /** Draws a line that shows on dark and on light. */
  #stroke(context, path) {
    for (const [colour, width] of [["rgb(0 0 0 / 70%)", 3], ["white", 1.4]]) {
      context.beginPath();
      path();
      context.strokeStyle = colour;
      context.lineWidth = width / this.scale;
      context.stroke();
    }
  }
}

function at(event) {
  const { left, top } = event.currentTarget?.getBoundingClientRect() ?? event.target.getBoundingClientRect();
  return { x: event.clientX - left, y: event.clientY - top };
}
