/* sight.js: what the heads of one layer attend to in a picture, and its patches' colors, at any place
 * between two checks of a run.
 *
 * Draws with the functions of overlay.js. All checks of a picture and layer are fetched once.
 */

import { make } from "./dom.js";

const LONG = 560; // pixels of a drawing's long side
const FIELD = 336; // pixels of the long side of a smoothly enlarged map
const OPACITY = 0.65;
const MEAN = -1; // the "head" that is the mean of all
const USED = ["readLens", "upsample", "colorTable", "alphaTable", "paintField", "enlarged"];

let drawing = null;

/** overlay.js is a classic script; as a module of its own it leaves nothing behind in the page. */
function overlay() {
  drawing ??= (async () => {
    const answer = await fetch(new URL("./overlay.js", import.meta.url));
    const text = `${await answer.text()}\nexport { ${USED.join(", ")} };`;
    const url = URL.createObjectURL(new Blob([text], { type: "text/javascript" }));
    return import(url).finally(() => URL.revokeObjectURL(url));
  })();
  return drawing;
}

/** The parts of a bundle (apps/explore/emerging.py): bytes, or null for none. */
export function unbundled(buffer) {
  const view = new DataView(buffer);
  const count = view.getUint32(0, true);
  let start = 4 * (1 + count);
  return Array.from({ length: count }, (_, i) => {
    const length = view.getUint32(4 * (1 + i), true);
    start += length;
    return length ? new Uint8Array(buffer, start - length, length) : null;
  });
}

export async function bytesOf(url) {
  const answer = await fetch(url);
  if (!answer.ok) throw new Error(await answer.text());
  return answer.arrayBuffer();
}

export class Sight {
  constructor({ chooseHead }) {
    [this.chooseHead, this.at, this.head] = [chooseHead, 0, MEAN];
    this.known = new Map(); // what was fetched, by address
    this.canvas = make("canvas", "", { role: "img" });
    this.told = make("figcaption", "");
    this.colored = make("canvas", "", { role: "img", "aria-label": "The picture's patches, colored by their features" });
    this.note = make("p", "note");
    const legend = make("figcaption", "", {}, "Patches, colored by feature");
    this.second = make("figure", "", {}, make("div", "stage", {}, this.colored, this.note), legend);
    const figures = make("div", "figures", {}, make("figure", "", {}, make("div", "stage", {}, this.canvas), this.told), this.second);
    this.tiles = make("div", "tiles", { role: "radiogroup", "aria-label": "Heads" });
    this.element = make("div", "sight", {}, figures, this.tiles);
    this.scratch = make("canvas", "");
    this.small = make("canvas", "");
    this.tiles.addEventListener("keydown", (event) => this.walk(event));
  }

  fetched(url, read) {
    if (!this.known.has(url)) {
      const promise = bytesOf(url).then(read);
      promise.catch(() => this.known.delete(url));
      this.known.set(url, promise);
      if (this.known.size > 24) this.known.delete(this.known.keys().next().value);
    }
    return this.known.get(url);
  }

  /** Fetch a picture with all checks of one layer, then draw it. */
  async show({ at, layers, heads, hasColors }, picture, layer) {
    const wanted = `${at}/${picture}/${layer}`;
    if (this.wanted === wanted) return;
    this.wanted = wanted;
    this.element.dataset.ready = "false";
    const lib = await overlay();
    const read = (buffer) => unbundled(buffer).map((bytes) => bytes && lib.readLens(bytes));
    const [photo, lenses, colors] = await Promise.all([
      photoAt(`${at}/picture/${picture}`),
      layers ? this.fetched(`${at}/heads/${picture}/${layer}`, read) : [],
      hasColors ? this.fetched(`${at}/colors/${picture}`, (buffer) => unbundled(buffer).map(grid)) : [],
    ]);
    if (this.wanted !== wanted) return; // another one was quicker
    Object.assign(this, { lib, photo, lenses: held(lenses), colors: held(colors), heads });
    const scale = LONG / Math.max(photo.naturalWidth, photo.naturalHeight);
    for (const canvas of [this.canvas, this.colored]) {
      [canvas.width, canvas.height] = [photo.naturalWidth * scale, photo.naturalHeight * scale].map(Math.round);
      canvas.style.setProperty("--ratio", photo.naturalWidth / photo.naturalHeight);
    }
    this.table = lib.colorTable("inferno");
    this.alpha = lib.alphaTable(OPACITY);
    this.buildTiles(photo.naturalWidth / photo.naturalHeight);
    this.note.textContent = this.colors.some(Boolean) ? "" : "This run kept no patch tokens: it is older than their colors.";
    this.second.classList.toggle("empty", !this.colors.some(Boolean));
    this.element.dataset.ready = "true";
    this.paint(this.at, this.head);
  }

  buildTiles(ratio) {
    const attends = this.lenses.some(Boolean);
    const numbers = attends ? [MEAN, ...Array(this.heads).keys()] : [];
    this.buttons = numbers.map((head) => {
      const name = head < 0 ? "Mean" : `Head ${head + 1}`;
      const button = make("button", "tile", { type: "button", role: "radio", "aria-label": name, title: name },
        make("canvas", ""), make("span", "", {}, head < 0 ? "Mean" : head + 1));
      button.addEventListener("click", () => this.chooseHead(head));
      return button;
    });
    this.tiles.style.setProperty("--ratio", ratio);
    this.tiles.style.setProperty("--columns", numbers.length > 8 ? Math.ceil(numbers.length / 2) : numbers.length);
    this.tiles.replaceChildren(...this.buttons);
  }

  walk(event) {
    const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -1, ArrowDown: 1 }[event.key];
    if (!step) return;
    event.preventDefault();
    const count = this.heads + 1;
    this.chooseHead(((this.head + 1 + step + count) % count) - 1);
    this.buttons[this.head + 1].focus();
  }

  /** Draw the state at a place between checks. */
  paint(at, head) {
    [this.at, this.head] = [at, head];
    if (this.element.dataset.ready !== "true") return;
    this.paintAttention(at, head);
    this.paintColors(at);
  }

  paintAttention(at, head) {
    const pen = this.canvas.getContext("2d");
    const { width, height } = this.canvas;
    const { plain, gray } = this.lib.enlarged(this.photo, width, height);
    pen.globalAlpha = 1;
    pen.drawImage(plain, 0, 0);
    if (!this.lenses.some(Boolean)) {
      this.told.textContent = "This model has no attention to show";
      return;
    }
    const [first, second, share] = pair(this.lenses, at);
    const { h, w } = first;
    const name = head < 0 ? "mean of the heads" : `head ${head + 1}`;
    this.told.textContent = `Attention, ${name}`;
    this.canvas.setAttribute("aria-label", `The picture under the attention of the ${name}`);
    const shades = (of) => mixed(first.map(0, of).shades, second.map(0, of).shades, share);
    const factor = Math.max(1, Math.ceil(FIELD / Math.max(h, w)));
    const field = this.lib.upsample(shades(head), h, w, factor);
    this.lib.paintField(this.scratch, field.values, field.W, field.H, this.table, { alpha: this.alpha });
    pen.globalAlpha = OPACITY; // the photo's own colors make room, so that color means attention
    pen.drawImage(gray, 0, 0);
    pen.globalAlpha = 1;
    pen.imageSmoothingQuality = "high";
    pen.drawImage(this.scratch, 0, 0, width, height);
    this.buttons.forEach((button, number) => {
      const chosen = number - 1 === head;
      button.setAttribute("aria-checked", chosen);
      button.tabIndex = chosen ? 0 : -1;
      this.lib.paintField(button.firstChild, shades(number - 1), w, h, this.table);
    });
  }

  paintColors(at) {
    const pen = this.colored.getContext("2d");
    const { width, height } = this.colored;
    if (!this.colors.some(Boolean)) {
      pen.clearRect(0, 0, width, height);
      return;
    }
    const [first, second, share] = pair(this.colors, at);
    [this.small.width, this.small.height] = [first.w, first.h];
    const picture = new ImageData(first.w, first.h);
    const rgb = mixed(first.rgb, second.rgb, share);
    for (let i = 0; i < first.w * first.h; i++) {
      for (let c = 0; c < 3; c++) picture.data[4 * i + c] = rgb[3 * i + c];
      picture.data[4 * i + 3] = 255;
    }
    this.small.getContext("2d").putImageData(picture, 0, 0);
    pen.imageSmoothingQuality = "high";
    pen.drawImage(this.small, 0, 0, width, height);
  }
}

/** The picture at an address, ready to be drawn. */
async function photoAt(url) {
  const photo = new Image();
  photo.src = url;
  await photo.decode();
  return photo;
}

/** Colors of one check: {h, w, rgb}. */
function grid(bytes) {
  if (!bytes) return null;
  const view = new DataView(bytes.buffer, bytes.byteOffset);
  return { h: view.getUint16(0, true), w: view.getUint16(2, true), rgb: bytes.subarray(4) };
}

/** Where a check kept nothing, what the one before it kept stays; before the first, the first. */
function held(values) {
  let last = values.find(Boolean) ?? null;
  return values.map((value) => (last = value ?? last));
}

/** The two values around a place, and how far it is from the first to the second. */
function pair(values, at) {
  const [first, second] = [values[Math.floor(at)], values[Math.ceil(at)]];
  return first.h === second.h && first.w === second.w ? [first, second, at - Math.floor(at)] : [first, first, 0];
}

function mixed(first, second, share) {
  return share ? Float32Array.from(first, (value, i) => value + share * (second[i] - value)) : first;
}
