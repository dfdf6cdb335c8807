// The attention overlay: draws a lens payload over its photo, entirely in the browser.
//
//   const lens = mountLens(element, {payload: Uint8Array, image: url, title: "china.jpg", ask});
//   lens.update({payload, image, title});      // another picture; layer, head, sliders stay; so does
//                                              // all, where content, model_hash and fed are given and
//                                              // say that it is the same one
//   lens.apply({layer: 11, head: 2});          // from outside, without an event
//   lens.destroy();
//   element.addEventListener("lens", e => e.detail)      // {layer, head, keep, ...} on each change
//
// `ask(about, details)` is optional: a function that promises the server's answer. With it a click
// on a patch shows the attention from there, rollout is offered, and a box can be drawn:
// "lens-box" events tell it in shares of the picture, {left, top, right, bottom}, or null.
//
// Plain JavaScript without a build: put it before your own code in Gradio's `js_on_load` or in a
// Streamlit v2 component. It wants theme.css and overlay.css, and makes no request of its own.
//
// Payload (docs/formats.md): uint32 n, n bytes of JSON header, uint8 codes [L, heads, h, w] of
// 255 * sqrt(attention / max of the head).

const LENS_COLORS = { // as in dino_core/lenses/colormap.py
  inferno: "000004 050417 100a2e 1f0c47 300a5c 420a68 530e6d 63146e 731a6e 83206b 932667 a42c61 b33359 " +
    "c23b50 d04545 dd513a e75f2d f06e21 f67f13 fa9207 fca50a fbb81d f8cc36 f4e055 f2f27c fcffa4",
  magma: "000004 050416 0f0b2c 1b1043 2a115c 3b0f70 4c117a 5c177f 6c1d81 7c2382 8c2981 9d2e7f ad347c " +
    "be3977 ce4070 de4968 ea5661 f3665c f9795d fc8c63 fe9f6d feb27a fec589 fed89a fdeaac fcfdbf",
  viridis: "440154 471063 481e70 472b7a 453882 414487 3c4f8b 375a8c 32648e 2e6e8e 2a788e 26828e 228b8d " +
    "1f958b 1f9e88 22a884 2cb17e 3aba76 4dc36c 62ca5f 7ad151 93d741 aedc30 c9e01f e4e419 fde725",
  turbo: "30123b 3b3081 434cb7 4668df 4682f8 3e9bfe 2db5f1 1dccd9 18dfbe 27eda5 46f884 6efe62 94fe46 " +
    "b0f937 caed34 e1dd37 f3c93a fcb236 fe972c fa781e f05b12 e24209 cf2e04 b81d02 9c0f01 7a0403",
  gray: "000000 111111 222222 333333 444444 555555 666666 777777 888888 999999 aaaaaa bbbbbb cccccc " +
    "dddddd eeeeee ffffff",
};
const LENS_MODES = [["heat", "Heat map"], ["masked", "Masked"], ["spotlight", "Spotlight"],
  ["colored", "By head"]];
const LENS_FIELD = 640; // pixels on the long side of a smoothly upsampled map
const LENS_LONG_SIDE = 1200; // pixels of the drawing, at least
const LENS_MEAN = -1; // the "head" that is the mean of a layer's heads
const LENS_LIKE = -2; // the "head" that is the cosine of a patch's feature with all others
const LENS_DRAG = 6; // CSS pixels that a press may wander and still be a click
const LENS_HOLD = 260; // milliseconds after which a press shows the photo and is no click
const LENS_FIELDS = 32; // smooth maps that are kept, about 1.6 MB each: the heads of any layer
const LENS_SOURCES = 16; // answers that are kept of one picture: rollout, and patches

// ---- the payload -------------------------------------------------------------------------------

/** Decode base64 to bytes. */
function bytesFromBase64(text) {
  const raw = atob(text);
  const bytes = new Uint8Array(raw.length);
  for (let i = 0; i < raw.length; i++) bytes[i] = raw.charCodeAt(i);
  return bytes;
}

/** Parse a payload; `map(layer, head)` gives one head's decoded map, head -1 the layer's mean. */
function readLens(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const start = 4 + view.getUint32(0, true);
  const header = JSON.parse(new TextDecoder().decode(bytes.subarray(4, start)));
  const [h, w] = header.grid;
  const codes = bytes.subarray(start);
  if (codes.length !== header.layers * header.heads * h * w) {
    throw new Error("lens payload: the maps are cut off");
  }
  const cache = new Map();
  const map = (layer, head) => {
    const key = `${layer}/${head}`;
    if (!cache.has(key)) {
      const isMean = head === LENS_MEAN;
      cache.set(key, isMean ? meanMap(header, codes, layer) : headMap(header, codes, layer, head));
    }
    return cache.get(key);
  };
  return {...header, h, w, map};
}

function headMap(header, codes, layer, head) {
  const size = header.grid[0] * header.grid[1];
  const own = codes.subarray((layer * header.heads + head) * size, (layer * header.heads + head + 1) * size);
  const values = Float32Array.from(own, (code) => (code / 255) ** 2);
  const kept = header.kept[layer][head];
  const count = (keep) => {
    const at = Math.min(Math.max(keep, 0), 1) * (kept.length - 1);
    const below = Math.floor(at + 1e-9);
    const above = Math.min(below + 1, kept.length - 1);
    const share = Math.max(at - below, 0);
    return Math.round(kept[below] * (1 - share) + kept[above] * share);
  };
  return finished(values, header.max[layer][head], count, descending(values));
}

/** A map of cosines from the server, {grid, low, high, codes}. Cosines of one image lie close together,
    so `count(keep)` takes the patches in the upper `keep` of the range they span. */
function readCosines({low, high, codes}) {
  const bytes = bytesFromBase64(codes);
  const cosines = Float32Array.from(bytes, (code) => low + (high - low) * (code / 255));
  const order = descending(cosines);
  const shades = Float32Array.from(bytes, (code) => code / 255);
  const count = (keep) => shades.reduce((sum, shade) => sum + (shade >= 1 - keep ? 1 : 0), 0);
  const bound = (keep) => high - keep * (high - low);
  return {values: cosines, shades, least: low, peak: 1, count, order, bound};
}

/** The mean over a layer's heads; its mask counts come from the decoded values. */
function meanMap(header, codes, layer) {
  const size = header.grid[0] * header.grid[1];
  const values = new Float32Array(size);
  for (let head = 0; head < header.heads; head++) {
    const offset = (layer * header.heads + head) * size;
    const scale = header.max[layer][head] / header.heads;
    for (let i = 0; i < size; i++) values[i] += scale * (codes[offset + i] / 255) ** 2;
  }
  const peak = values.reduce((a, b) => Math.max(a, b), 0);
  const mass = values.reduce((a, b) => a + b, 0);
  for (let i = 0; i < size; i++) values[i] /= peak || 1;
  const order = descending(values);
  const count = (keep) => {
    if (!mass || keep <= 0) return 0;
    if (keep >= 1) return size;
    let running = 0;
    for (let i = 0; i < size; i++) {
      running += values[order[i]] * peak;
      if (running >= keep * mass * (1 - 1e-6)) return i + 1;
    }
    return size;
  };
  return finished(values, peak, count, order);
}

/** A decoded map: values relative to `peak`, `count(keep)`, and `shades`, the values stretched from
    least to greatest as the published pictures are. */
function finished(values, peak, count, order) {
  const least = values.length ? values[order[order.length - 1]] : 0;
  const range = values[order[0]] - least;
  const shades = values.map((value) => (range > 0 ? (value - least) / range : 0));
  return {values, shades, least: least * peak, peak, count, order};
}

/** Indices by falling value, ties in reading order. */
function descending(values) {
  return Uint32Array.from(values.keys()).sort((a, b) => values[b] - values[a] || a - b);
}

/** The shade that separates the `count` kept patches from the rest. */
function levelOf(map, count) {
  if (count <= 0) return Infinity;
  if (count >= map.values.length) return -Infinity;
  return (map.shades[map.order[count - 1]] + map.shades[map.order[count]]) / 2;
}

// ---- drawing -----------------------------------------------------------------------------------

/** 256 RGB triples between the anchors of a color map. */
function colorTable(name) {
  const anchors = LENS_COLORS[name].split(" ").map((hex) => parseInt(hex, 16));
  const table = new Uint8Array(768);
  for (let i = 0; i < 256; i++) {
    const at = (i / 255) * (anchors.length - 1);
    const left = Math.min(Math.floor(at), anchors.length - 2);
    for (let c = 0; c < 3; c++) {
      const shift = 16 - 8 * c;
      const a = (anchors[left] >> shift) & 255;
      const b = (anchors[left + 1] >> shift) & 255;
      table[3 * i + c] = Math.round(a + (b - a) * (at - left));
    }
  }
  return table;
}

/** Alpha by value: the photo shows through where little attention lies, unless opacity is full. */
function alphaTable(opacity) {
  const [low, high] = [opacity ** 2.4, opacity ** 0.5];
  return Uint8ClampedArray.from({length: 256}, (_, i) => 255 * (low + (high - low) * (i / 255)));
}

/** Bilinear upsampling by an integer factor, patch centers at pixel centers, edges held. */
function upsample(values, h, w, factor) {
  const H = h * factor, W = w * factor;
  const wide = new Float64Array(h * W), out = new Float32Array(H * W);
  const columns = between(w, factor), rows = between(h, factor);
  for (let y = 0; y < h; y++) {
    for (let x = 0; x < W; x++) {
      const share = columns.share[x], at = y * w + columns.low[x];
      wide[y * W + x] = values[at] * (1 - share) + values[at + columns.step] * share;
    }
  }
  for (let y = 0; y < H; y++) {
    const share = rows.share[y], top = rows.low[y] * W, bottom = top + rows.step * W;
    for (let x = 0; x < W; x++) out[y * W + x] = wide[top + x] * (1 - share) + wide[bottom + x] * share;
  }
  return {values: out, H, W};
}

/** Between which two of `n` values each of `n * factor` places lies: the lower one, and how far it is
    to the next, which is `step` on. */
function between(n, factor) {
  const low = new Int32Array(n * factor), share = new Float64Array(n * factor);
  for (let i = 0; i < low.length; i++) {
    const at = Math.min(Math.max((i + 0.5) / factor - 0.5, 0), n - 1);
    low[i] = Math.min(Math.floor(at), Math.max(n - 2, 0));
    share[i] = at - low[i];
  }
  return {low, share, step: n > 1 ? 1 : 0};
}

/** The pixels of a canvas of W x H as 32-bit words (r, g, b, a from the lowest byte) to write into,
    and `show()` to put them on it. Kept with the canvas: making them anew costs milliseconds. */
function pixelsOf(canvas, W, H) {
  if (canvas.width !== W || canvas.height !== H || !canvas.lensPixels) {
    [canvas.width, canvas.height] = [W, H];
    const context = canvas.getContext("2d");
    const picture = context.createImageData(W, H);
    const words = new Uint32Array(picture.data.buffer);
    canvas.lensPixels = {words, show: () => context.putImageData(picture, 0, 0)};
  }
  return canvas.lensPixels;
}

/** Paint values in 0..1 into `canvas`, as opaque as `alpha` (256 numbers, 0..255) says of a value.
    Where `keep(i)` is false a pixel is clear. */
function paintField(canvas, values, W, H, table, {alpha = null, keep = null} = {}) {
  const colors = Uint32Array.from({length: 256}, (_, code) => (
    table[3 * code] | (table[3 * code + 1] << 8) | (table[3 * code + 2] << 16) | ((alpha ? alpha[code] : 255) << 24)));
  const {words, show} = pixelsOf(canvas, W, H);
  if (keep) for (let i = 0; i < words.length; i++) words[i] = keep(i) ? colors[(255 * values[i] + 0.5) | 0] : 0;
  else for (let i = 0; i < words.length; i++) words[i] = colors[(255 * values[i] + 0.5) | 0];
  show();
}

/** Line segments in patch units around the kept patches, along their edges. */
function blockOutline(inside, h, w) {
  const at = (y, x) => y >= 0 && x >= 0 && y < h && x < w && inside[y * w + x] === 1;
  const lines = [];
  for (let y = 0; y <= h; y++) {
    for (let x = 0; x <= w; x++) {
      if (at(y, x) !== at(y - 1, x)) lines.push([x, y, x + 1, y]);
      if (at(y, x) !== at(y, x - 1)) lines.push([x, y, x, y + 1]);
    }
  }
  return lines;
}

/** Marching squares over patch centers: the level line of the smooth field, in patch units. */
function levelOutline(values, h, w, level) {
  const lines = [];
  const value = (y, x) => values[Math.min(Math.max(y, 0), h - 1) * w + Math.min(Math.max(x, 0), w - 1)];
  for (let y = -1; y < h; y++) {
    for (let x = -1; x < w; x++) {
      const corner = [value(y, x), value(y, x + 1), value(y + 1, x + 1), value(y + 1, x)];
      const place = [[x, y], [x + 1, y], [x + 1, y + 1], [x, y + 1]];
      const cuts = [];
      for (let i = 0; i < 4; i++) {
        const j = (i + 1) % 4;
        if (corner[i] >= level === corner[j] >= level) continue;
        const f = (level - corner[i]) / (corner[j] - corner[i]);
        cuts.push([0, 1].map((k) => place[i][k] + f * (place[j][k] - place[i][k]) + 0.5));
      }
      for (let i = 0; i + 1 < cuts.length; i += 2) lines.push([...cuts[i], ...cuts[i + 1]]);
    }
  }
  return lines;
}

const lensFields = new Map(); // smooth fields by their map, of all drawings; the last used stand last

/** A map's shades enlarged by `factor`; those of the last `LENS_FIELDS` maps are kept. */
function smoothField(map, h, w, factor) {
  const kept = lensFields.get(map);
  const field = kept?.factor === factor ? kept : {...upsample(map.shades, h, w, factor), factor};
  lensFields.delete(map);
  lensFields.set(map, field);
  if (lensFields.size > LENS_FIELDS) lensFields.delete(lensFields.keys().next().value);
  return field;
}

/** What of a map is drawn: its field of pixels (`values`, H, W), and which of them the mass mask
    keeps. */
function keptField(map, {h, w}, state) {
  const count = map.count(state.keep);
  const level = levelOf(map, count);
  const inside = new Uint8Array(map.values.length);
  for (let i = 0; i < count; i++) inside[map.order[i]] = 1;
  const factor = state.smooth ? Math.max(1, Math.ceil(LENS_FIELD / Math.max(h, w))) : 1;
  const field = factor > 1 ? smoothField(map, h, w, factor) : {values: map.shades, H: h, W: w};
  const isKept = factor > 1 ? (i) => field.values[i] >= level : (i) => inside[i] === 1;
  return {count, level, inside, field, isKept};
}

/** The color of a head, [r, g, b]: hues a golden angle apart, so that neighbors differ. */
function headColor(head) {
  const hue = (head * 137.508 + 205) % 360;
  const part = (n) => {
    const k = (n + hue / 30) % 12; // hsl to rgb, saturation 0.85, lightness 0.58
    return Math.round(255 * (0.58 - 0.85 * 0.42 * Math.max(-1, Math.min(k - 3, 9 - k, 1))));
  };
  return [part(0), part(8), part(4)];
}

/** The color of a head in a drawing: its own, or that of the head whose number `hues` has for it. */
const colorIn = ({hues}, head) => headColor(hues?.[head] ?? head);

/** Each head's kept patches in the head's own color, the strongest head in front: the paper's
    picture of several heads at once. */
function paintHeads(canvas, maps, grid, state) {
  const kept = maps.map((map) => keptField(map, grid, state));
  const {H, W} = kept[0].field;
  const alpha = Math.round(255 * state.opacity) << 24;
  const colors = maps.map((_, head) => colorIn(state, head).reduce((word, part, at) => word | (part << (8 * at)), alpha));
  const {words, show} = pixelsOf(canvas, W, H);
  for (let i = 0; i < words.length; i++) {
    let best = -1, most = -1;
    for (let head = 0; head < kept.length; head++) {
      if (kept[head].field.values[i] > most && kept[head].isKept(i)) {
        most = kept[head].field.values[i];
        best = head;
      }
    }
    words[i] = best < 0 ? 0 : colors[best];
  }
  show();
}

/** Draw photo, heat and outline of one map. `lens` is what `readLens` gives, `state` as in
    `mountLens`; `map` is the map that is chosen. */
function paintStage(canvas, photo, lens, map, state, scratch) {
  const context = canvas.getContext("2d");
  const {width, height} = canvas;
  context.globalAlpha = 1;
  context.globalCompositeOperation = "source-over";
  const {plain, gray} = enlarged(photo, width, height);
  context.drawImage(plain, 0, 0);
  if (state.peek) return;

  if (state.mode !== "spotlight") { // take the photo's own colors back, so that color means attention
    context.globalAlpha = state.opacity;
    context.drawImage(gray, 0, 0);
    context.globalAlpha = 1;
  }
  context.imageSmoothingEnabled = state.smooth;
  if (state.mode === "colored" && !map.bound) {
    const layer = Math.min(state.layer, lens.layers - 1);
    paintHeads(scratch, [...Array(lens.heads).keys()].map((head) => lens.map(layer, head)), lens, state);
    context.drawImage(scratch, 0, 0, width, height);
    return;
  }
  const {count, level, inside, field, isKept} = keptField(map, lens, state);
  if (state.mode === "spotlight") {
    const shade = new Uint8Array(256).fill(255 * state.opacity);
    paintField(scratch, field.values, field.W, field.H, new Uint8Array(768),
      {alpha: shade, keep: (i) => !isKept(i)});
  } else {
    paintField(scratch, field.values, field.W, field.H, colorTable(state.colors),
      {alpha: alphaTable(state.opacity), keep: state.mode === "masked" ? isKept : null});
  }
  context.drawImage(scratch, 0, 0, width, height);
  if (state.outline && count > 0) {
    const lines = state.smooth
      ? levelOutline(map.shades, lens.h, lens.w, level) : blockOutline(inside, lens.h, lens.w);
    strokeLines(context, lines, width / lens.w, height / lens.h, Math.max(width, height) / 600);
  }
}

/** The photo at the drawing's size, and the same without its colors; made once for a photo. */
function enlarged(photo, width, height) {
  if (photo.lensEnlarged?.width !== width) {
    const [plain, gray] = [0, 1].map((amount) => {
      const canvas = lensNode("canvas", {width, height});
      const context = canvas.getContext("2d");
      context.drawImage(photo, 0, 0, width, height);
      if (amount) desaturate(context, width, height, amount);
      return canvas;
    });
    photo.lensEnlarged = {width, plain, gray};
  }
  return photo.lensEnlarged;
}

/** Take the photo's own colors back as the heat map comes forward, so that color means attention. */
function desaturate(context, width, height, amount) {
  context.globalCompositeOperation = "saturation";
  context.globalAlpha = amount;
  context.fillStyle = "#808080";
  context.fillRect(0, 0, width, height);
  context.globalCompositeOperation = "source-over";
  context.globalAlpha = 1;
}

/** A square around a patch; `strong` is where attention comes from, else the keyboard's place. */
function paintPatch(context, {row, column}, {h, w}, strong) {
  const {width, height} = context.canvas;
  const unit = Math.max(width, height) / 600;
  const box = [(column * width) / w, (row * height) / h, width / w, height / h];
  for (const [color, thickness] of [["rgb(6 9 20 / 85%)", strong ? 7 : 5], ["#ffffff", strong ? 3 : 2]]) {
    context.strokeStyle = color;
    context.lineWidth = thickness * unit;
    context.setLineDash(strong ? [] : [4 * unit, 4 * unit]);
    context.strokeRect(...box);
  }
  context.setLineDash([]);
}

/** A drawn box: what lies outside is darker. */
function paintBox(context, {left, top, right, bottom}) {
  const {width, height} = context.canvas;
  const [x, y, w, h] = [left * width, top * height, (right - left) * width, (bottom - top) * height];
  context.fillStyle = "rgb(6 9 20 / 45%)";
  context.beginPath();
  context.rect(0, 0, width, height);
  context.rect(x, y, w, h);
  context.fill("evenodd");
  context.strokeStyle = "#ffffff";
  context.lineWidth = Math.max(width, height) / 400;
  context.strokeRect(x, y, w, h);
}

function strokeLines(context, lines, sx, sy, unit) {
  context.beginPath();
  for (const [x0, y0, x1, y1] of lines) {
    context.moveTo(x0 * sx, y0 * sy);
    context.lineTo(x1 * sx, y1 * sy);
  }
  context.lineCap = "round";
  context.strokeStyle = "rgb(6 9 20 / 70%)";
  context.lineWidth = 4 * unit;
  context.stroke();
  context.strokeStyle = "#ffffff";
  context.lineWidth = 1.7 * unit;
  context.stroke();
}

/** The fewest columns with which the tiles of a panel stay about as low as they are wide together. */
function tileColumns(count, ratio) {
  const [width, height, gap] = [328, 260, 8]; // pixels: the panel's inside, and what suits it
  for (let columns = 2; columns < 6; columns++) {
    const side = (width - gap * (columns - 1)) / columns;
    if (Math.ceil(count / columns) * (side / ratio + gap) <= height) return columns;
  }
  return 6;
}

// ---- the page element --------------------------------------------------------------------------

/** Make an element: attributes, `on*` listeners, children (strings become text, never markup). */
function lensNode(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== false && value != null) node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}

/** A labeled range input with its reading; `text` turns the value to words. */
function lensSlider(name, {min, max, step, value, text, change}) {
  const id = `lens-${Math.random().toString(36).slice(2)}`;
  const output = lensNode("output", {for: id});
  const input = lensNode("input", {type: "range", id, min, max, step, value, "data-lens": name});
  const show = () => {
    output.textContent = text(Number(input.value));
    input.setAttribute("aria-valuetext", output.textContent);
  };
  input.addEventListener("input", () => { show(); change(Number(input.value)); });
  show();
  const label = name[0].toUpperCase() + name.slice(1);
  const row = lensNode("div", {class: "lens-row"}, lensNode("label", {for: id}, label, output), input);
  return {row, input, set(v) { input.value = v; show(); }};
}

function lensSegments(legend, options, value, change) {
  const group = `lens-${Math.random().toString(36).slice(2)}`;
  const row = lensNode("div", {class: "lens-segments", role: "radiogroup", "aria-label": legend});
  for (const [key, text] of options) {
    row.append(lensNode("label", {}, lensNode("input", {
      type: "radio", name: group, value: key, checked: key === value, onchange: () => change(key),
    }), lensNode("span", {}, text)));
  }
  row.set = (key) => { for (const input of row.querySelectorAll("input")) input.checked = input.value === key; };
  return row;
}

function lensCheck(text, checked, change) {
  const input = lensNode("input", {type: "checkbox", checked, onchange: (e) => change(e.target.checked)});
  return lensNode("label", {class: "lens-check"}, input, text);
}

/** What a picture is, by its content, the weights that looked and the size they saw; "" if not told. */
const sceneOf = ({content, model_hash: hash, fed}) => (content ? [content, hash, fed].join(" ") : "");

/** Mount the overlay into `element`; see the top of this file. */
function mountLens(element, {payload, image, title = "", state: wanted = {}, ask = null, ...of}) {
  const state = {
    layer: -1, head: LENS_MEAN, opacity: 0.65, keep: 0.6, mode: "heat", outline: true,
    colors: "inferno", smooth: true, peek: false, from: "class", patch: null, box: null, hues: null, ...wanted,
  };
  let lens = null, photo = null, name = title, frame = 0, latest = 0, tiles = [];
  let sources = new Map(); // what was asked for of this picture: rollout, and patches by place
  let scene = ""; // what is drawn, where the page says: content, weights and size
  let asking = false; // whether a question of `attend` is under way
  let cursor = null; // the patch that the keyboard is at
  let marked = null; // the first corner of a box drawn by keyboard
  const scratch = document.createElement("canvas");
  const change = (part) => { Object.assign(state, part); refresh(); };

  // the picture
  const canvas = lensNode("canvas", {role: "img"});
  const reading = lensNode("div", {class: "lens-reading", "aria-hidden": "true"});
  const stage = lensNode("div", {
    class: "lens-stage", tabindex: "0", role: "group",
    "aria-label": "Picture with attention. Left and right arrow change the head, up and down the layer" +
      (ask ? "; with shift they choose a patch, Enter shows the attention from it, and B marks the corners of a box." : "."),
    onpointermove: (event) => readPatch(event), onpointerleave: () => { reading.textContent = ""; },
    onpointerdown: (event) => press(event), onclick: (event) => choose(event),
  }, canvas, reading);
  let held = 0;
  let corner = null, drawing = false; // where a press began, and whether it is becoming a box
  let dragged = false; // whether the last press became one: its click chooses no patch
  const press = (event) => {
    if (event.button) return;
    clearTimeout(held);
    held = setTimeout(() => change({peek: true}), ask ? LENS_HOLD : 0);
    corner = ask && event.pointerType !== "touch" && {at: placeOf(event), x: event.clientX, y: event.clientY};
    drawing = dragged = false;
  };
  const drag = (event) => {
    if (!corner) return;
    const far = Math.hypot(event.clientX - corner.x, event.clientY - corner.y);
    if (!drawing && far < (state.peek ? 4 * LENS_DRAG : LENS_DRAG)) return; // who holds may tremble
    drawing = dragged = true;
    clearTimeout(held);
    change({peek: false, box: boxBetween(corner.at, placeOf(event))});
  };
  const release = () => {
    clearTimeout(held);
    corner = null;
    if (drawing) tellBox();
    drawing = false; // the next pointer that is lifted, wherever it is, is another's
    if (state.peek) setTimeout(() => change({peek: false}));
  };
  window.addEventListener("pointermove", drag);
  window.addEventListener("pointerup", release);
  window.addEventListener("pointercancel", release);
  const what = lensNode("strong");
  const share = lensNode("span");
  const scale = lensNode("canvas", {width: 256, height: 1, "aria-hidden": "true"});
  const least = lensNode("span");
  const peak = lensNode("span");
  const caption = lensNode("figcaption", {class: "lens-caption"}, what, share,
    lensNode("div", {class: "lens-scale"}, least, scale, peak));
  const figure = lensNode("figure", {class: "lens-figure"}, stage, caption);
  const spoken = lensNode("div", {class: "lens-quiet", role: "status", "aria-live": "polite"});

  // the panel
  const grid = lensNode("div", {class: "lens-tiles", role: "radiogroup", "aria-label": "Attention heads"});
  const percent = (v) => `${Math.round(v)} %`;
  const layer = lensSlider("layer", {min: 1, max: 1, step: 1, value: 1,
    text: (v) => `${v} of ${lens ? lens.layers : 1}`, change: (v) => change({layer: v - 1})});
  const opacity = lensSlider("opacity", {min: 0, max: 100, step: 1, value: 100 * state.opacity,
    text: percent, change: (v) => change({opacity: v / 100})});
  const keep = lensSlider("attention kept", {min: 0, max: 100, step: 1, value: 100 * state.keep,
    text: percent, change: (v) => change({keep: v / 100})});
  const colorsId = `lens-${Math.random().toString(36).slice(2)}`;
  const colors = lensNode("select", {id: colorsId, onchange: (e) => change({colors: e.target.value})},
    ...Object.keys(LENS_COLORS).map((key) => lensNode("option", {value: key, selected: key === state.colors},
      key[0].toUpperCase() + key.slice(1))));
  const modes = lensSegments("Show attention as", LENS_MODES, state.mode, (mode) => change({mode}));
  const outlined = lensCheck("Outline", state.outline, (on) => change({outline: on}));
  const smooth = lensCheck("Smooth", state.smooth, (on) => change({smooth: on}));
  const from = lensSegments("Attention from", [["class", "Class token"], ["patch", "Patch"],
    ["rollout", "Rollout"]], state.from, (origin) => attend({from: origin}));
  const origin = ask ? [lensNode("div", {class: "lens-row"},
    lensNode("span", {class: "lens-legend"}, "Attention from"), from)] : [];
  const panel = lensNode("div", {class: "lens-panel"}, ...origin, layer.row, grid,
    lensNode("div", {class: "lens-controls"},
      modes, opacity.row, keep.row,
      lensNode("div", {class: "lens-pair"},
        lensNode("div", {class: "lens-row"}, lensNode("label", {for: colorsId}, "Color map"), colors),
        lensNode("button", {type: "button", class: "lens-button", onclick: () => save()}, "Save picture")),
      lensNode("div", {class: "lens-checks"},
        outlined, smooth)));

  const root = lensNode("div", {class: "lens", onkeydown: (event) => walk(event)},
    lensNode("div", {class: "lens-layout"}, figure, panel), spoken);
  element.replaceChildren(root);

  const patchKey = () => (state.patch ? `${state.patch.row},${state.patch.column}` : "");
  const wantedSource = () => (state.from === "patch" ? patchKey() : state.from);
  const source = () => sources.get(wantedSource()) ?? lens; // the class token until an answer is here
  const map = (head = state.head) => {
    const {like, ...own} = source();
    if (head === LENS_LIKE && like) return like;
    return own.map(Math.min(state.layer, own.layers - 1), Math.min(Math.max(head, LENS_MEAN), own.heads - 1));
  };
  const heads = () => {
    const {like, heads: count} = source();
    if (count === 1 && source() !== lens) return [LENS_MEAN];
    return [...(like ? [LENS_LIKE] : []), LENS_MEAN, ...Array(count).keys()];
  };
  const headName = (head) => ({[LENS_MEAN]: "Mean", [LENS_LIKE]: "Similar"}[head] ?? `Head ${head + 1}`);
  const label = () => {
    if (state.head === LENS_LIKE) return "Similar patches";
    if (source().layers === 1 && source() !== lens) return "All layers · rollout";
    return `Layer ${state.layer + 1} · ${headName(state.head)}`;
  };

  function walk(event) {
    const step = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1]}[event.key];
    if (!lens || event.target.matches("input, select") || event.altKey || event.ctrlKey || event.metaKey) return;
    if (ask && event.target === stage && (event.key === "Enter" || (step && event.shiftKey))) {
      event.preventDefault();
      return step ? moveCursor(step) : attend({from: "patch", patch: cursor ?? middle()});
    }
    if (ask && event.target === stage && event.key.toLowerCase() === "b") return markCorner();
    if (event.key === "Escape" && state.box) {
      change({box: null});
      return tellBox();
    }
    if (event.key === "Escape" && state.from !== "class") return attend({from: "class"});
    if (!step || event.shiftKey) return;
    event.preventDefault();
    const there = heads();
    const at = Math.max(there.indexOf(state.head), 0);
    const head = there[(at + step[0] + there.length) % there.length];
    change({head, layer: Math.min(Math.max(state.layer + step[1], 0), lens.layers - 1)});
    if (grid.contains(document.activeElement) || grid.contains(event.target)) tiles[there.indexOf(head)].focus();
  }

  /** Where on the picture the pointer is, in shares of its width and height, held inside. */
  function placeOf({clientX, clientY}) {
    const box = canvas.getBoundingClientRect();
    const within = (value) => Math.min(Math.max(value, 0), 1);
    return [within((clientX - box.left) / box.width), within((clientY - box.top) / box.height)];
  }

  function boxBetween([x0, y0], [x1, y1]) {
    return {left: Math.min(x0, x1), top: Math.min(y0, y1), right: Math.max(x0, x1), bottom: Math.max(y0, y1)};
  }

  function tellBox() {
    element.dispatchEvent(new CustomEvent("lens-box", {detail: state.box, bubbles: true}));
  }

  /** By keyboard: the first B marks a corner at the chosen patch, the second closes the box. */
  function markCorner() {
    const {row, column} = cursor ?? middle();
    const here = [[column / lens.w, row / lens.h], [(column + 1) / lens.w, (row + 1) / lens.h]];
    if (!marked) {
      marked = here;
      spoken.textContent = "first corner of a box; go to the other and press B again";
      return;
    }
    const xs = [...marked, ...here].map(([x]) => x), ys = [...marked, ...here].map(([, y]) => y);
    change({box: boxBetween([Math.min(...xs), Math.min(...ys)], [Math.max(...xs), Math.max(...ys)])});
    marked = null;
    tellBox();
  }

  const middle = () => ({row: lens.h >> 1, column: lens.w >> 1});

  function moveCursor([x, y]) {
    const {row, column} = cursor ?? state.patch ?? middle();
    const within = (value, most) => Math.min(Math.max(value, 0), most - 1);
    cursor = {row: within(row - y, lens.h), column: within(column + x, lens.w)};
    spoken.textContent = `patch ${cursor.column + 1}, ${cursor.row + 1}`;
    refresh();
  }

  /** The patch under the pointer, or null: shares of the drawing's box hold at any zoom. */
  function patchAt({clientX, clientY}) {
    const box = canvas.getBoundingClientRect();
    const column = Math.floor(((clientX - box.left) / box.width) * lens.w);
    const row = Math.floor(((clientY - box.top) / box.height) * lens.h);
    const outside = column < 0 || row < 0 || column >= lens.w || row >= lens.h;
    return outside ? null : {row, column};
  }

  function readPatch(event) {
    const patch = lens && patchAt(event);
    if (!patch) { reading.textContent = ""; return; }
    const {values, peak: most, bound} = map();
    const value = values[patch.row * lens.w + patch.column];
    const told = bound ? `cosine ${value.toFixed(2)}` : `${(100 * most * value).toPrecision(2)} % of attention`;
    reading.textContent = `patch ${patch.column + 1}, ${patch.row + 1} · ${told}`;
  }

  function choose(event) {
    const patch = ask && lens && !state.peek && !dragged && patchAt(event);
    dragged = false;
    if (!patch) return;
    cursor = null;
    attend({from: "patch", patch});
  }

  /** Show the attention from elsewhere: asked for once, then kept with the picture. While an answer is
      on its way only the newest wish is remembered, and asked for next. */
  async function attend(wish) {
    change(wish);
    if (state.from === "patch" && !state.patch) change({patch: middle()});
    if (asking && !sources.has(wantedSource())) return;
    if (!asking) await fetchWanted();
    keepSource(sources, wantedSource(), source());
    buildTiles();
    refresh();
  }

  async function fetchWanted() {
    while (!sources.has(wantedSource())) {
      const key = wantedSource(), of = sources;
      asking = true;
      root.classList.add("lens-waiting");
      try {
        const answer = key === "rollout" ? await ask("rollout", {}) : await ask("patch", state.patch);
        const read = readLens(bytesFromBase64(answer.payload));
        keepSource(of, key, answer.similarity ? {...read, like: readCosines(answer.similarity)} : read);
      } catch {
        if (key === wantedSource() && of === sources) change({from: "class"}); // the page says why
      }
    }
    asking = false;
    root.classList.remove("lens-waiting");
  }

  /** Keep an answer, and of all only those used last; the class token's maps stay. */
  function keepSource(of, key, answer) {
    of.delete(key);
    of.set(key, answer);
    const [oldest] = [...of.keys()].filter((one) => one !== "class");
    if (of.size > LENS_SOURCES + 1) of.delete(oldest);
  }

  function save() {
    const of = name.replace(/\.[a-z]+$/i, "") || "attention";
    const file = `${of} layer ${state.layer + 1} ${headName(state.head)}`;
    const download = `${file.toLowerCase().replace(/[^a-z0-9]+/g, "-")}.png`;
    lensNode("a", {href: canvas.toDataURL("image/png"), download}).click();
  }

  function buildTiles() {
    const there = heads();
    const awaited = state.head === LENS_LIKE && state.from === "patch" && source() === lens;
    if (!there.includes(state.head) && !awaited) state.head = LENS_MEAN;
    tiles = there.map((head) => lensNode("button", {
      type: "button", class: "lens-tile", role: "radio", onclick: () => change({head}), "data-head": head,
      "aria-label": headName(head),
    }, document.createElement("canvas"), lensNode("span", {}, head < 0 ? headName(head) : head + 1)));
    grid.style.setProperty("--lens-columns", tileColumns(tiles.length, lens.w / lens.h));
    grid.replaceChildren(...tiles);
  }

  function paintTiles() {
    const drawn = [state.layer, state.colors, state.smooth].join();
    const table = colorTable(state.colors);
    tiles.forEach((tile) => {
      const head = Number(tile.dataset.head);
      const chosen = head === state.head;
      tile.setAttribute("aria-checked", chosen);
      tile.tabIndex = chosen ? 0 : -1;
      const color = state.mode === "colored" && head >= 0 ? `rgb(${colorIn(state, head).join()})` : "";
      tile.lastChild.style.background = color;
      tile.lastChild.style.color = color && "#060914";
      if (tile.drawn === drawn) return;
      tile.drawn = drawn;
      tile.firstChild.style.imageRendering = state.smooth ? "auto" : "pixelated";
      paintField(tile.firstChild, map(head).shades, lens.w, lens.h, table);
    });
  }

  function describe() {
    const chosen = map();
    const area = Math.round((100 * chosen.count(state.keep)) / chosen.values.length);
    what.textContent = label();
    if (chosen.bound) {
      share.textContent = `${area} % of the picture has a cosine of ${chosen.bound(state.keep).toFixed(2)} or more`;
      least.textContent = chosen.least.toFixed(2);
      peak.textContent = `${chosen.bound(0).toFixed(2)} cosine`;
    } else {
      share.textContent = `${Math.round(100 * state.keep)} % of the attention lies in ${area} % of the picture`;
      least.textContent = (100 * chosen.least).toPrecision(2);
      peak.textContent = `${(100 * chosen.peak).toPrecision(2)} % per patch`;
    }
    canvas.setAttribute("aria-label", `${name || "Picture"}. ${label()}. ${share.textContent}.`);
    spoken.textContent = `${label()}. ${share.textContent}.`;
    paintField(scale, Float32Array.from({length: 256}, (_, i) => i / 255), 256, 1, colorTable(state.colors));
  }

  function paint() {
    frame = 0;
    if (!lens || !photo) return;
    paintTiles();
    describe();
    paintStage(canvas, photo, source(), map(), state, scratch);
    if (state.peek) return;
    const context = canvas.getContext("2d");
    if (state.from === "patch" && state.patch) paintPatch(context, state.patch, lens, true);
    if (cursor) paintPatch(context, cursor, lens, false);
    if (state.box) paintBox(context, state.box);
    element.dispatchEvent(new CustomEvent("lens-drawn"));
  }

  function refresh({quiet = false} = {}) {
    if (lens) layer.set(state.layer + 1); // the arrow keys move the layer too
    from.set(state.from);
    if (!frame) frame = requestAnimationFrame(paint);
    if (quiet) return;
    const {peek, ...told} = state;
    element.dispatchEvent(new CustomEvent("lens", {detail: {...told, grid: lens && [lens.h, lens.w]}}));
  }

  /** Show another picture, as `given` says; resolves when its photo is loaded. */
  async function update({payload: bytes, image: url, title: text = "", state: given = {}, ...of}) {
    const asked = (latest += 1), now = sceneOf(of);
    if (now && now === scene) return showAgain(text);
    const next = readLens(bytes);
    const picture = new Image();
    picture.src = url;
    await picture.decode();
    if (asked !== latest) return; // a later picture was quicker
    const same = lens && lens.layers === next.layers && lens.heads === next.heads;
    lens = next;
    scene = now;
    sources = new Map([["class", next]]);
    cursor = marked = null;
    Object.assign(state, {from: "class", patch: null, box: null}, given);
    if (state.patch && !(state.patch.row < lens.h && state.patch.column < lens.w)) state.patch = null;
    reveal();
    photo = picture;
    name = text;
    const {naturalWidth: width, naturalHeight: height} = picture;
    const enlarge = Math.max(1, LENS_LONG_SIDE / Math.max(width, height)); // a crisp outline
    canvas.width = Math.round(width * enlarge);
    canvas.height = Math.round(height * enlarge);
    canvas.style.setProperty("--lens-ratio", width / height);
    if (!same) {
      state.layer = Math.min(state.layer < 0 ? Math.max(lens.layers + state.layer, 0) : state.layer, lens.layers - 1);
      state.head = Math.min(state.head, lens.heads - 1);
      layer.input.max = lens.layers;
    }
    buildTiles();
    refresh();
    if (state.from !== "class") attend({});
    if (state.box) tellBox();
  }

  /** The picture that is drawn has come again, as beside another gallery: what was chosen on it stays. */
  function showAgain(text) {
    name = text;
    refresh();
  }

  /** Let the controls say what the state is, where it did not come from them. */
  function reveal() {
    opacity.set(Math.round(100 * state.opacity));
    keep.set(Math.round(100 * state.keep));
    modes.set(state.mode);
    colors.value = state.colors;
    outlined.querySelector("input").checked = state.outline;
    smooth.querySelector("input").checked = state.smooth;
  }

  /** Set layer, head, opacity, ... from outside. No event tells of it, so two can follow each other. */
  function apply(part) {
    Object.assign(state, part);
    reveal();
    refresh({quiet: true});
  }

  function destroy() {
    window.removeEventListener("pointermove", drag);
    window.removeEventListener("pointerup", release);
    window.removeEventListener("pointercancel", release);
    cancelAnimationFrame(frame);
    clearTimeout(held);
    root.remove();
  }

  const ready = payload ? update({payload, image, title, state: wanted, ...of}) : Promise.resolve();
  return {update, apply, destroy, ready, state};
}

globalThis.mountLens = mountLens;
globalThis.bytesFromBase64 = bytesFromBase64;
