// What the tabs of the lens page are made of: a picture to draw on, beside it a panel of controls.
// Wants overlay.js (lensNode, bytesFromBase64, ...) and its style sheet.

/** A figure with a canvas, and a panel of controls beside it, in `home`.
    `photo(url)` promises the picture, drawn; `told` is the caption. */
function tabFrame(home, label, ...controls) {
  const canvas = lensNode("canvas", {role: "img", "aria-label": label});
  const stage = lensNode("div", {class: "lens-stage"}, canvas);
  const told = lensNode("span", {role: "status"});
  const figure = lensNode("figure", {class: "lens-figure"}, stage,
    lensNode("figcaption", {class: "lens-caption"}, told));
  const panel = lensNode("div", {class: "lens-panel"}, lensNode("div", {class: "lens-controls"}, ...controls));
  const root = lensNode("div", {class: "lens"}, lensNode("div", {class: "lens-layout"}, figure, panel));
  home.replaceChildren(root);
  async function photo(url) {
    const picture = await pictureAt(url);
    fitCanvas(canvas, picture);
    return picture;
  }
  return {root, canvas, stage, figure, panel, told, photo};
}

/** The picture at an address, loaded and ready to be drawn. */
async function pictureAt(url) {
  const picture = new Image();
  picture.src = url;
  await picture.decode();
  return picture;
}

/** Give a canvas the picture's shape, large enough for crisp lines. */
function fitCanvas(canvas, {naturalWidth: width, naturalHeight: height}) {
  const enlarge = Math.max(1, LENS_LONG_SIDE / Math.max(width, height));
  canvas.width = Math.round(width * enlarge);
  canvas.height = Math.round(height * enlarge);
  canvas.style.setProperty("--lens-ratio", width / height);
}

/** A canvas of one pixel a patch from bytes [h, w, 3]; `alpha(i)` 0..255 of patch i. */
function patchPicture(rgb, [h, w], alpha = () => 255) {
  const canvas = lensNode("canvas", {width: w, height: h});
  const context = canvas.getContext("2d");
  const picture = context.createImageData(w, h);
  for (let i = 0; i < h * w; i++) {
    picture.data.set(rgb.subarray(3 * i, 3 * i + 3), 4 * i);
    picture.data[4 * i + 3] = alpha(i);
  }
  context.putImageData(picture, 0, 0);
  return canvas;
}

/** Save bytes or a text as a file of the visitor's. */
function saveAs(name, content, type) {
  const href = URL.createObjectURL(new Blob([content], {type}));
  lensNode("a", {href, download: name}).click();
  setTimeout(() => URL.revokeObjectURL(href), 10_000);
}

/** A file's name from what it shows: "Chelsea.jpg" and "colors" give "chelsea-colors". */
function fileName(title, ...parts) {
  const words = [title.replace(/\.[a-z]+$/i, ""), ...parts].join(" ");
  return words.toLowerCase().replace(/[^a-z0-9]+/g, "-").replace(/^-|-$/g, "") || "picture";
}

function lensButton(text, onclick, more = {}) {
  return lensNode("button", {type: "button", class: "lens-button", onclick, ...more}, text);
}

/** A labeled select; `options` are [value, text]. */
function lensSelect(legend, options, value, change) {
  const id = `lens-${Math.random().toString(36).slice(2)}`;
  const select = lensNode("select", {id, onchange: (event) => change(event.target.value)},
    ...options.map(([key, text]) => lensNode("option", {value: key, selected: key === value}, text)));
  return {row: lensNode("div", {class: "lens-row"}, lensNode("label", {for: id}, legend), select), select};
}
