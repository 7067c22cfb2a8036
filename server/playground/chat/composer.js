// Where the reader writes: the text of the next message and its pictures.
import { html, useEffect, useRef, useState } from "../lib/dom.js";
import { IconButton } from "../lib/ui.js";
import { asDataUrl } from "./pictures.js";

const drafts = new Map();

export function Composer({ id, isReady, takesPictures, running, onSend, active }) {
  const [text, setText] = useState(drafts.get(id) ?? "");
  const [images, setImages] = useState([]);
  const [problem, setProblem] = useState("");
  const [isWaiting, setWaiting] = useState(false); // was asked to send before there was a model
  const area = useRef(null);
  const picker = useRef(null);
  useEffect(() => {
    drafts.set(id, text);
    area.current.style.height = "auto";
    area.current.style.height = `${Math.min(area.current.scrollHeight, innerHeight * 0.4)}px`;
  }, [text]);
  useEffect(() => {
    if (active && matchMedia("(hover: hover)").matches) area.current.focus();
  }, [active]);
  const isRunning = running.length > 0;
  const isSomething = (value) => value.trim() !== "" || images.length > 0;
  const maySend = isReady && !isRunning && isSomething(text);
  const stop = () => running.forEach((run) => run.stop());
  const send = () => {
    const { value } = area.current; // newer than `text`, if the keys came fast
    if (isRunning || !isSomething(value)) return;
    setWaiting(!isReady);
    if (!isReady) return;
    drafts.delete(id);
    setText("");
    setImages([]);
    onSend(value, images);
  };
  useEffect(() => {
    if (isReady && isWaiting) send();
  }, [isReady, isWaiting]);
  const keys = (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      send();
    } else if (event.key === "Escape" && isRunning) stop();
  };
  const attach = async (files) => {
    setProblem("");
    try {
      const urls = await Promise.all([...files].filter(({ type }) => type.startsWith("image/")).map(asDataUrl));
      setImages((before) => [...before, ...urls]);
    } catch (error) {
      setProblem(error.message);
    }
  };
  const take = (event) => {
    const { files } = event.clipboardData ?? event.dataTransfer;
    if (!takesPictures || files.length === 0) return;
    event.preventDefault();
    attach(files);
  };
  return html`<div class="composer" onPaste=${take} onDrop=${take} onDragOver=${(event) => takesPictures && event.preventDefault()}>
    ${problem && html`<p class="hint" role="alert">${problem}</p>`}
    ${isWaiting && html`<p class="hint" role="status">It is sent as soon as a model is available.</p>`}
    ${images.length > 0 && html`<ul class="attached">
      ${images.map((url, i) => html`<li><img src=${url} alt=${`Picture ${i + 1}`} />
        <${IconButton} icon="close" size=${13} label=${`Remove picture ${i + 1}`} onClick=${() => setImages(images.filter((_, j) => j !== i))} /></li>`)}
    </ul>`}
    <div class="composer-row">
      ${takesPictures && html`<input type="file" accept="image/*" multiple hidden ref=${picker} onChange=${(event) => { attach(event.target.files); event.target.value = ""; }} />
        <${IconButton} icon="attach" label="Attach pictures" onClick=${() => picker.current.click()} />`}
      <textarea ref=${area} rows="1" aria-label="Message" placeholder="Message" value=${text} onInput=${(event) => setText(event.target.value)} onKeyDown=${keys}></textarea>
      ${isRunning
        ? html`<${IconButton} icon="stop" label="Stop" class="send" onClick=${stop} />`
        : html`<${IconButton} icon="send" label="Send" class="send" disabled=${!maySend} onClick=${send} />`}
    </div>
  </div>`;
}
