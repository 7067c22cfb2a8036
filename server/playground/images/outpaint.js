// Extending a picture: its new edges are dragged, or entered as numbers.
import { html, useEffect, useId, useRef, useState } from "../lib/dom.js";

export const SIDES = ["left", "right", "top", "bottom"];
const NOTHING = { left: 0, right: 0, top: 0, bottom: 0 };
const ROOM = 0.72; // of the stage, so that an edge can be dragged outwards

export function Outpaint({ url, width, height, multiple, value = NOTHING, onChange }) {
  const stage = useRef(null);
  const [room, setRoom] = useState(null);
  const [drag, setDrag] = useState(null);
  const grown = { ...NOTHING, ...value };
  const total = { width: width + grown.left + grown.right, height: height + grown.top + grown.bottom };
  useEffect(() => {
    const observer = new ResizeObserver(([entry]) => setRoom(entry.contentRect));
    observer.observe(stage.current);
    return () => observer.disconnect();
  }, []);
  const scale = drag?.scale ?? (room && ROOM * Math.min(room.width / total.width, room.height / total.height));
  const change = (side, pixels) => {
    const whole = Math.min(4096, Math.max(0, Math.round(pixels / multiple) * multiple));
    onChange({ ...grown, [side]: whole });
  };
  // The picture rests in the middle of the stage, and stays where it is while an edge is dragged.
  const picture = drag?.picture ?? (room && {
    x: (room.width - scale * total.width) / 2 + scale * grown.left,
    y: (room.height - scale * total.height) / 2 + scale * grown.top,
  });
  const begin = (side) => (event) => {
    event.preventDefault();
    event.currentTarget.setPointerCapture(event.pointerId);
    setDrag({ side, scale, picture, from: grown[side], x: event.clientX, y: event.clientY });
  };
  const move = (event) => {
    if (!drag) return;
    const [dx, dy] = [event.clientX - drag.x, event.clientY - drag.y];
    change(drag.side, drag.from + { left: -dx, right: dx, top: -dy, bottom: dy }[drag.side] / drag.scale);
  };
  const px = (length) => `${Math.round(length)}px`;
  return html`<div class="outpaint">
    <div class="outpaint-stage" ref=${stage} onPointerMove=${move} onPointerUp=${() => setDrag(null)} onPointerCancel=${() => setDrag(null)}>
      ${picture && html`<div class="outpaint-frame" style=${{
        left: px(picture.x - scale * grown.left),
        top: px(picture.y - scale * grown.top),
        width: px(scale * total.width),
        height: px(scale * total.height),
      }}>
        <img src=${url} alt="The picture that is extended" draggable=${false} style=${{
          left: px(scale * grown.left),
          top: px(scale * grown.top),
          width: px(scale * width),
          height: px(scale * height),
        }} />
        ${SIDES.map((side) => html`<span class="edge is-${side}" onPointerDown=${begin(side)}><i></i></span>`)}
      </div>`}
    </div>
    <div class="outpaint-sides">
      ${SIDES.map((side) => html`<${Side} side=${side} value=${grown[side]} step=${multiple} onChange=${(pixels) => change(side, pixels)} />`)}
      <p class="hint" role="status">${total.width} × ${total.height} pixels</p>
    </div>
  </div>`;
}

function Side({ side, value, step, onChange }) {
  const id = useId();
  return html`<div class="field">
    <label for=${id}>${side[0].toUpperCase() + side.slice(1)}</label>
    <input id=${id} type="number" min="0" max="4096" step=${step} value=${value} onChange=${(event) => onChange(Number(event.target.value))} />
  </div>`;
}
