// A picture from the camera: a dialog with what it sees, and a button that takes it.

const CAMERA_PATIENCE = 8_000; // ms

/** Open the camera and promise the picture taken as a File, or null when the visitor closes it.
    Rejects with a sentence where there is no camera, or it may not be used. */
async function takePhoto() {
  if (!navigator.mediaDevices?.getUserMedia) {
    throw new Error("The camera can only be used on this machine's own address or over https.");
  }
  let stream;
  try {
    stream = await navigator.mediaDevices.getUserMedia({video: {width: {ideal: 1280}}, audio: false});
  } catch (error) {
    throw new Error(error.name === "NotAllowedError"
      ? "The browser was not allowed to use the camera; allow it beside the address."
      : "No camera was found.");
  }
  const video = node("video", {autoplay: true, playsinline: true, "aria-label": "What the camera sees"});
  video.muted = true;
  video.srcObject = stream;
  const take = node("button", {type: "button", class: "camera-take"}, "Take the picture");
  const close = node("button", {type: "button", class: "camera-close"}, "Close");
  const dialog = node("dialog", {class: "camera", "aria-label": "Camera"}, video,
    node("div", {class: "camera-bar"}, close, take));
  document.body.append(dialog);
  dialog.showModal();
  try {
    return await new Promise((resolve) => {
      close.addEventListener("click", () => resolve(null));
      dialog.addEventListener("close", () => resolve(null)); // Escape
      take.addEventListener("click", () => resolve(frameOf(video)));
    });
  } finally {
    for (const track of stream.getTracks()) track.stop(); // its light goes off
    dialog.remove();
  }
}

/** The frame that a video shows, as a JPEG file. */
async function frameOf(video) {
  for (let waited = 0; video.readyState < HTMLMediaElement.HAVE_CURRENT_DATA; waited += 50) {
    if (waited > CAMERA_PATIENCE) throw new Error("The camera gives no picture; is another program using it?");
    await new Promise((done) => setTimeout(done, 50));
  }
  const canvas = node("canvas", {width: video.videoWidth, height: video.videoHeight});
  canvas.getContext("2d").drawImage(video, 0, 0);
  const blob = await new Promise((done) => canvas.toBlob(done, "image/jpeg", 0.95));
  return new File([blob], "camera.jpg", {type: "image/jpeg"});
}
