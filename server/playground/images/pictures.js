// Pictures as files: their sizes, addresses and small versions.

const addresses = new WeakMap();
const THUMBNAIL = 160;

/** The address of a blob in this page. It holds as long as the page, or until `forget`. */
export function urlOf(blob) {
  if (!addresses.has(blob)) addresses.set(blob, URL.createObjectURL(blob));
  return addresses.get(blob);
}

export function forget(blob) {
  if (addresses.has(blob)) URL.revokeObjectURL(addresses.get(blob));
  addresses.delete(blob);
}

/** Decodes a picture, upright. */
export async function loadPicture(blob) {
  try {
    return await createImageBitmap(blob);
  } catch {
    throw new Error("This file is not a picture that the browser can read. Choose a PNG, JPEG or WebP file.");
  }
}

export function blobOf(base64, type = "image/png") {
  return new Blob([Uint8Array.from(atob(base64), (character) => character.charCodeAt(0))], { type });
}

export function dataUrl(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(blob);
  });
}

/** A small version, as a data URL. */
export function thumbnail(picture) {
  const scale = Math.min(1, THUMBNAIL / Math.min(picture.width, picture.height));
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(scale * picture.width));
  canvas.height = Math.max(1, Math.round(scale * picture.height));
  const context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.drawImage(picture, 0, 0, canvas.width, canvas.height);
  return canvas.toDataURL("image/webp", 0.8);
}
