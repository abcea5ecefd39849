// Makes a picture as large as the model needs, before it is sent.

import { atMost } from "./predict.js";

// The shorter side is so many times what the model needs: the most that is small enough, for it keeps the scores nearest.
// Tried on photographs at the same bytes and no better: less headroom at higher quality, WebP, and cutting out the square
// that the model sees, which shifts its pixels. See scripts/shrinking.py.
const HEADROOMS = [2, 1.75, 1.5, 1.25, 1];
const QUALITY = 0.8;
const ENOUGH_BYTES = 60_000;
const WORTHWHILE = 0.75; // of the file; JPEG a second time for less is not

const oneByOne = atMost(1); // a large photograph takes 50 MB while it is decoded

/**
 * A picture for a model with this `input` (of /models).
 *
 * Gives { blob, why, width, height, ms }: what to send, and why it is what it is:
 * "shrunk", or the file itself because it is "small" enough, little would be "saved", it is "transparent" (the service
 * looks at the colours below, a canvas forgets them) or "unreadable" here. Width and height are the file's, upright;
 * null where unreadable.
 */
export function shrink(file, input) {
  return oneByOne(async () => {
    const start = performance.now();
    const done = (blob, why, bitmap) => {
      const size = bitmap ? { width: bitmap.width, height: bitmap.height } : { width: null, height: null };
      bitmap?.close();
      return { blob, why, ...size, ms: performance.now() - start };
    };
    const bitmap = await decode(file);
    if (!bitmap) return done(file, "unreadable", null);
    const needed = input.resize_size / Math.min(bitmap.width, bitmap.height);
    if (HEADROOMS[0] * needed >= 1) return done(file, "small", bitmap);
    try {
      if (file.type !== "image/jpeg" && transparent(draw(bitmap, needed))) return done(file, "transparent", bitmap);
      const blob = await smallEnough(bitmap, needed);
      return blob.size < WORTHWHILE * file.size ? done(blob, "shrunk", bitmap) : done(file, "saved", bitmap);
    } catch { // a browser without OffscreenCanvas, or a picture too long for one
      return done(file, "unreadable", bitmap);
    }
  });
}

/** As the service sees it: upright, and with the colours as they are stored. */
async function decode(file) {
  try {
    return await createImageBitmap(file, { imageOrientation: "from-image", colorSpaceConversion: "none" });
  } catch {
    return null;
  }
}

function draw(bitmap, scale) {
  const canvas = new OffscreenCanvas(Math.round(bitmap.width * scale), Math.round(bitmap.height * scale));
  const context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  return canvas;
}

function transparent(canvas) {
  const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
  for (let i = 3; i < data.length; i += 4) if (data[i] < 255) return true;
  return false;
}

/** A JPEG, which every browser writes and the service decodes fastest. */
async function smallEnough(bitmap, needed) {
  let blob = null;
  for (const headroom of HEADROOMS) {
    blob = await draw(bitmap, headroom * needed).convertToBlob({ type: "image/jpeg", quality: QUALITY });
    if (blob.size <= ENOUGH_BYTES) break;
  }
  return blob;
}
