// Pictures that go with a message, in a form and size that any model takes.
const LONGEST_SIDE = 1536;
const AS_THEY_ARE = ["image/png", "image/jpeg", "image/webp"];
const MOST_BYTES = 4_000_000;

/** The data URL of a picture file; large ones are made smaller, other formats become PNG.
 * @throws an error that says which file the browser cannot read. */
export async function asDataUrl(file) {
  const bitmap = await createImageBitmap(file).catch(() => {
    throw new Error(`This browser cannot read ${file.name || "the picture"}; attach PNG, JPEG or WebP.`);
  });
  const scale = Math.min(1, LONGEST_SIDE / Math.max(bitmap.width, bitmap.height));
  if (scale === 1 && AS_THEY_ARE.includes(file.type) && file.size <= MOST_BYTES) return read(file);
  const canvas = document.createElement("canvas");
  canvas.width = Math.round(bitmap.width * scale);
  canvas.height = Math.round(bitmap.height * scale);
  canvas.getContext("2d").drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  return canvas.toDataURL(file.type === "image/jpeg" ? "image/jpeg" : "image/png", 0.9);
}

function read(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(file);
  });
}
