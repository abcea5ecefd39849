// Pictures from the camera: live in a dialog where the page may use it, else through the browser's own camera chooser.

import { $, say } from "./dom.js";
import { t } from "./language.js";
import { addPictures } from "./pictures.js";

let stream = null;
let taken = 0;

async function open() {
  say($("problem"), "");
  if (!navigator.mediaDevices?.getUserMedia) { // plain http from another machine
    $("capture").click();
    return;
  }
  try {
    stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment", width: { ideal: 1920 } } });
  } catch (error) {
    say($("problem"), t(error.name === "NotFoundError" ? "problem.no-camera" : "problem.camera"));
    return;
  }
  $("video").srcObject = stream;
  $("camera-dialog").showModal();
}

async function shoot() {
  const video = $("video");
  if (!video.videoWidth) return; // no frame yet
  const canvas = new OffscreenCanvas(video.videoWidth, video.videoHeight);
  canvas.getContext("2d").drawImage(video, 0, 0);
  const blob = await canvas.convertToBlob({ type: "image/jpeg", quality: 0.92 });
  taken += 1;
  addPictures([new File([blob], `camera-${taken}.jpg`, { type: blob.type })], false);
  $("camera-dialog").close();
}

$("camera").addEventListener("click", open);
$("shoot").addEventListener("click", shoot);
$("camera-close").addEventListener("click", () => $("camera-dialog").close());
$("camera-dialog").addEventListener("close", () => {
  for (const track of stream?.getTracks() ?? []) track.stop();
  stream = $("video").srcObject = null;
});
