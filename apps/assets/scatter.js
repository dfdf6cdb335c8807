/* scatter.js: a map of up to a million points that one can move, point at and select from.
 *
 * Pan (drag), zoom (wheel, pinch, + and -), hover for a thumbnail, click for the nearest point,
 * lasso or box (or Shift-drag) for many, a legend that filters. What goes out is small: a row, or a
 * polygon in data coordinates with the codes that were shown; which points lie inside is decided
 * again by the receiver (dino_core/gallery/selection.py) with the same even-odd rule.
 *
 * Points and color codes are fetched as bytes: float32 [2, n] (all x, then all y) and uint8 or
 * uint16 [n]. A point without finite coordinates is not drawn and cannot be picked.
 */

import { bounds, Cells, inPolygon, PointLayer, rgb } from "./points.js";

const TOOLS = { pan: "Move", lasso: "Lasso", box: "Box" };
const ICONS = {
  pan: "M12 3v18M3 12h18M12 3l-3 3M12 3l3 3M12 21l-3-3M12 21l3-3M3 12l3-3M3 12l3 3M21 12l-3-3M21 12l-3 3",
  lasso: "M12 4c5 0 9 2.4 9 5.6S17 15.2 12 15.2c-1.600 0-3.100-.3-4.400-.7M7.600 14.500C5 13.500 3 11.700 3 9.600 3 6.400 7 4 12 4M7.600 14.500a2 2 0 1 1-2.200 2.600c-.3 1.400.2 2.700 1.400 3.900",
  box: "M4 8V4h4M16 4h4v4M20 16v4h-4M8 20H4v-4M11 4h2M11 20h2M4 11v2M20 11v2",
  in: "M12 5v14M5 12h14",
  out: "M5 12h14",
  fit: "M9 4H4v5M15 4h5v5M20 15v5h-5M4 15v5h5",
  clear: "M6 6l12 12M18 6L6 18",
};
const PICK_RADIUS = 14; // CSS pixels from the pointer to the nearest point that counts as hit
const CLICK_SLOP = 4; // CSS pixels a click may move before it is a drag
const FAINT = 1; // state of a point outside the filter or the selection

/* ---------------------------------------------------------------- the widget */

/** An element with a class, attributes and children; text is never parsed as HTML. */
function make(tag, name, attributes = {}, ...children) {
  const element = document.createElement(tag);
  if (name) element.className = name;
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

function button(name, title, pressed) {
  const element = make("button", "tool", { type: "button", title, "aria-label": title, "data-tool": name });
  if (pressed !== undefined) element.setAttribute("aria-pressed", pressed);
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("viewBox", "0 0 24 24");
  const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
  path.setAttribute("d", ICONS[name]);
  svg.append(path);
  element.append(svg);
  return element;
}

const format = (value) => (Number.isInteger(value) ? value.toLocaleString("en") : Number(value.toPrecision(4)).toString());

class Scatter {
  /** @param trigger called with ("pick", row) or ("select", {polygon, shown, stamp}) */
  constructor(root, trigger) {
    this.trigger = trigger;
    this.props = {};
    this.view = null; // {x, y: data coordinates of the middle, scale: CSS pixels per unit}
    this.tool = "pan";
    this.polygon = null;
    this.shown = new Set(); // codes that the legend filters to; empty: all
    this.stamp = 0;
    this.focus = -1;
    this.hovered = -1;
    this.pointers = new Map();
    this.infos = new Map();
    this.x = this.y = new Float32Array(0);
    this.codes = new Uint8Array(0);
    this.stop = new AbortController();
    this.build(root);
    try {
      this.layer = new PointLayer(this.canvas);
    } catch (error) {
      this.say("This browser cannot draw the map: WebGL2 is off or missing. Another browser, or turning on hardware acceleration, mends it.");
      console.error(error);
    }
    this.listen();
  }

  build(root) {
    this.canvas = make("canvas", "points", { tabindex: "0", role: "application", "aria-label": "Map of the images. Arrow keys move, plus and minus zoom." });
    this.overlay = make("canvas", "overlay");
    this.message = make("p", "message", { role: "status" }, "Loading the map…");
    this.tip = make("figure", "tip", { hidden: "" }, make("img", "", { alt: "" }), make("figcaption", ""));
    this.count = make("span", "count");
    this.tools = make("div", "tools", { role: "toolbar", "aria-label": "Map tools" });
    for (const [name, title] of Object.entries(TOOLS)) this.tools.append(button(name, `${title}${name === "lasso" ? " (Shift-drag)" : ""}`, name === this.tool));
    this.tools.append(make("hr"), button("in", "Zoom in (+)"), button("out", "Zoom out (−)"), button("fit", "Show everything (double-click)"));
    this.clearButton = make("button", "clear", { type: "button", hidden: "" }, "Clear");
    this.stage = make("div", "stage", {}, this.canvas, this.overlay, this.tools, make("div", "state", {}, this.count, this.clearButton), this.tip, this.message);
    this.legend = make("aside", "legend", { "aria-label": "Legend" });
    this.frame = make("div", "scatter", { "data-ready": "false" }, this.stage, this.legend);
    root.append(this.frame);
  }

  say(text) {
    this.message.textContent = text;
    this.message.hidden = !text;
  }

  /* ---- data in */

  /** Show `props`; updates that arrive while another is loading wait for it. */
  update(props) {
    this.updating = (this.updating ?? Promise.resolve()).then(() => this.apply(props));
    return this.updating;
  }

  async apply(props) {
    const before = this.props;
    try {
      if (props.points !== before.points) await this.loadPoints(props.points);
      if (props.codes !== before.codes) await this.loadCodes(props.codes);
    } catch (error) {
      console.error(error);
      this.props = {}; // so that the next update tries again
      return this.say("The map could not be loaded; the server may have stopped. Reload the page to try again.");
    }
    this.props = props;
    if (JSON.stringify(props.legend) !== JSON.stringify(before.legend)) this.drawLegend();
    const told = props.selection;
    if (told && told.stamp >= this.stamp) [this.polygon, this.shown, this.stamp] = [told.polygon, new Set(told.shown), told.stamp];
    this.layer?.lit([...(props.lit ?? []), ...(props.picked == null ? [] : [props.picked])].filter((row) => row < this.x.length));
    this.recolor();
    this.restate();
    if (this.layer) this.say(this.x.length ? "" : "There is no point on this map yet.");
    this.frame.dataset.ready = "true";
  }

  async loadPoints(url) {
    const values = new Float32Array(await bytes(url));
    const n = values.length / 2;
    [this.x, this.y] = [values.slice(0, n), values.slice(n)];
    this.cells = new Cells(this.x, this.y);
    this.infos.clear();
    this.polygon = null;
    this.hovered = -1;
    this.layer?.points(this.x, this.y);
    if (this.codes.length !== n) this.showCodes(new Uint8Array(n)); // until the right ones are here
    this.fit();
  }

  async loadCodes(url) {
    const raw = await bytes(url);
    this.showCodes(raw.byteLength === 2 * this.x.length ? new Uint16Array(raw) : new Uint8Array(raw));
  }

  showCodes(codes) {
    this.codes = codes;
    this.shown.clear();
    this.layer?.fill("code", codes);
  }

  recolor() {
    const style = getComputedStyle(this.frame);
    this.surface = rgb(style.backgroundColor);
    this.faint = rgb(getComputedStyle(this.message).color);
    this.accent = getComputedStyle(this.count).color;
    const dark = this.surface.reduce((sum, v) => sum + v, 0) < 384;
    this.layer?.palette(this.props.colors?.[dark ? "dark" : "light"] ?? []);
    this.redraw();
  }

  /* ---- what is shown, what is selected */

  isShown(i) { return !this.shown.size || this.shown.has(this.codes[i]); }

  /** Recompute which points are faint, and say how many are selected. */
  restate() {
    const state = new Uint8Array(this.x.length);
    const polygon = this.polygon;
    const [x0, y0, x1, y1] = polygon ? bounds(polygon.map((p) => p[0]), polygon.map((p) => p[1])) : [];
    let selected = 0;
    for (let i = 0; i < state.length; i++) {
      const x = this.x[i], y = this.y[i];
      const inside = this.isShown(i) && (!polygon || (x >= x0 && x <= x1 && y >= y0 && y <= y1 && inPolygon(x, y, polygon)));
      if (inside) selected++;
      else state[i] = FAINT;
    }
    this.anyFaint = selected < state.length;
    this.layer?.fill("state", state);
    const some = polygon || this.shown.size;
    this.count.textContent = some ? `${format(selected)} of ${format(state.length)} selected` : `${format(state.length)} images`;
    this.clearButton.hidden = !some;
    this.frame.dataset.selected = some ? selected : 0;
    for (const item of this.legend.querySelectorAll("[data-code]"))
      item.setAttribute("aria-pressed", this.shown.has(Number(item.dataset.code)));
    this.redraw();
  }

  tell() {
    this.stamp = Date.now();
    this.restate();
    this.trigger("select", { polygon: this.polygon, shown: [...this.shown], stamp: this.stamp });
  }

  clear() {
    if (!this.polygon && !this.shown.size) return;
    this.polygon = null;
    this.shown.clear();
    this.tell();
  }

  /* ---- legend */

  drawLegend() {
    const { title, kind, entries = [], low, high } = this.props.legend ?? {};
    this.legend.replaceChildren(make("h3", "", {}, title ?? ""));
    if (kind === "numbers") {
      const ramp = make("div", "ramp");
      const { light, dark } = this.props.colors;
      const stops = light.slice(0, -1).map((color, i) => `light-dark(${color}, ${dark[i]})`); // last: no value
      ramp.style.background = `linear-gradient(to right, ${stops.join(", ")})`;
      this.legend.append(ramp, make("div", "ends", {}, make("span", "", {}, format(low)), make("span", "", {}, format(high))));
      return;
    }
    if (entries.length > 24) {
      const search = make("input", "search", { type: "search", placeholder: `Find among ${entries.length}`, "aria-label": "Find in the legend" });
      search.addEventListener("input", () => {
        for (const item of this.legend.querySelectorAll("li"))
          item.hidden = !item.textContent.toLowerCase().includes(search.value.toLowerCase());
      });
      this.legend.append(search);
    }
    const list = make("ul", "");
    entries.forEach(([name, count], code) => list.append(make("li", "", {}, this.legendEntry(name, count, code))));
    this.legend.append(list);
  }

  legendEntry(name, count, code) {
    const dot = make("i", "dot");
    const { light, dark } = this.props.colors;
    dot.style.background = `light-dark(${light[code]}, ${dark[code]})`;
    const item = make("button", "entry", { type: "button", "data-code": code, "aria-pressed": "false", title: `Show only ${name}` },
      dot, make("span", "name", {}, name), make("span", "number", {}, format(count)));
    const focus = (on) => { this.focus = on ? code : -1; this.redraw(); };
    item.addEventListener("click", () => {
      if (!this.shown.delete(code)) this.shown.add(code);
      this.tell();
    });
    item.addEventListener("pointerenter", () => focus(!this.shown.size));
    item.addEventListener("pointerleave", () => focus(false));
    return item;
  }

  /* ---- view */

  fit() {
    const [x0, y0, x1, y1] = bounds(this.x, this.y);
    const { clientWidth: width, clientHeight: height } = this.canvas;
    if (!width || !height) return;
    const scale = 0.9 * Math.min(width / Math.max(x1 - x0, 1e-6), height / Math.max(y1 - y0, 1e-6));
    this.view = { x: (x0 + x1) / 2, y: (y0 + y1) / 2, scale };
    this.fitted = scale;
    this.redraw();
  }

  zoom(factor, px = this.canvas.clientWidth / 2, py = this.canvas.clientHeight / 2) {
    if (!this.view) return;
    const [x, y] = this.toData(px, py);
    const scale = Math.min(this.fitted * 400, Math.max(this.fitted * 0.4, this.view.scale * factor));
    this.view.scale = scale;
    const [nx, ny] = this.toData(px, py);
    this.view.x += x - nx;
    this.view.y += y - ny;
    this.redraw();
  }

  move(dx, dy) {
    if (!this.view) return;
    this.view.x -= dx / this.view.scale;
    this.view.y += dy / this.view.scale;
    this.redraw();
  }

  toData(px, py) {
    const { x, y, scale } = this.view;
    return [x + (px - this.canvas.clientWidth / 2) / scale, y - (py - this.canvas.clientHeight / 2) / scale];
  }

  toPixel(x, y) {
    const view = this.view;
    return [(x - view.x) * view.scale + this.canvas.clientWidth / 2, (view.y - y) * view.scale + this.canvas.clientHeight / 2];
  }

  /** Diameter of a point in CSS pixels: smaller in a crowd, growing as one zooms in. */
  pointSize() {
    const crowd = Math.min(9, Math.max(1.6, 24 * this.x.length ** -0.18));
    return Math.min(16, crowd * Math.max(0.8, (this.view.scale / this.fitted) ** 0.3));
  }

  redraw() {
    this.pending ??= requestAnimationFrame(() => {
      this.pending = null;
      this.paint();
    });
  }

  paint() {
    if (!this.view) this.fit();
    if (!this.view || !this.surface) return;
    const { clientWidth: width, clientHeight: height } = this.canvas;
    const ratio = this.canvas.width / width;
    this.layer?.draw({
      center: [this.view.x, this.view.y],
      scale: [(2 * this.view.scale) / width, (2 * this.view.scale) / height],
      size: this.pointSize() * ratio,
      alpha: this.x.length > 20000 ? 0.6 : 0.88,
      focus: this.focus,
      surface: this.surface,
      faint: this.faint,
      anyFaint: this.anyFaint,
    });
    this.paintOverlay(width, height, ratio);
  }

  paintOverlay(width, height, ratio) {
    const pen = this.overlay.getContext("2d");
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    pen.clearRect(0, 0, width, height);
    pen.lineJoin = "round";
    const { picked, lit = [], query } = this.props;
    const at = (row) => this.toPixel(this.x[row], this.y[row]);
    const middle = query ? this.toPixel(...query) : picked != null && picked < this.x.length ? at(picked) : null;
    if (middle) this.paintNeighbors(pen, middle, lit.filter((row) => row < this.x.length).map(at));
    if (middle && query) star(pen, middle, this.accent, `rgb(${this.surface})`);
    else if (middle) ring(pen, middle, this.pointSize() * 0.85 + 4, 2.5, this.accent);
    if (this.hovered >= 0) ring(pen, at(this.hovered), this.pointSize() / 2 + 3, 1.5, this.accent);
    const outline = this.drawing ?? this.polygon?.map(([x, y]) => this.toPixel(x, y));
    if (outline) this.paintPolygon(pen, outline);
  }

  paintNeighbors(pen, middle, ends) {
    pen.strokeStyle = this.accent;
    pen.lineWidth = 1;
    pen.globalAlpha = 0.45;
    for (const end of ends) {
      pen.beginPath();
      pen.moveTo(...middle);
      pen.lineTo(...end);
      pen.stroke();
    }
    pen.globalAlpha = 1;
    for (const end of ends) ring(pen, end, this.pointSize() * 0.85 + 1.5, 1.5, this.accent);
  }

  paintPolygon(pen, outline) {
    pen.beginPath();
    outline.forEach((point) => pen.lineTo(...point));
    pen.closePath();
    pen.fillStyle = pen.strokeStyle = this.accent;
    pen.globalAlpha = 0.1;
    pen.fill();
    pen.globalAlpha = 0.9;
    pen.lineWidth = 1.5;
    pen.setLineDash([5, 4]);
    pen.stroke();
    pen.setLineDash([]);
    pen.globalAlpha = 1;
  }

  /* ---- events */

  listen() {
    const on = (target, kinds, handler, options = {}) =>
      kinds.split(" ").forEach((kind) => target.addEventListener(kind, handler, { signal: this.stop.signal, ...options }));
    on(this.tools, "click", (event) => this.useTool(event.target.closest("button")?.dataset.tool));
    on(this.clearButton, "click", () => this.clear());
    on(this.canvas, "pointerdown", (event) => this.down(event));
    on(this.canvas, "pointermove", (event) => this.moved(event));
    on(this.canvas, "pointerup pointercancel", (event) => this.up(event));
    on(this.canvas, "pointerleave", () => this.hover(-1));
    on(this.canvas, "dblclick", () => this.fit());
    on(this.canvas, "wheel", (event) => {
      event.preventDefault();
      this.zoom(Math.exp(-event.deltaY * (event.deltaMode ? 0.05 : 0.0016)), event.offsetX, event.offsetY);
    }, { passive: false });
    on(this.canvas, "keydown", (event) => this.key(event));
    on(this.canvas, "webglcontextlost", (event) => event.preventDefault());
    on(this.canvas, "webglcontextrestored", () => this.restore());
    on(this.frame, "transitionend", (event) => event.target === this.frame && this.recolor()); // light to dark
    this.resized = new ResizeObserver(() => this.resize());
    this.resized.observe(this.canvas);
  }

  resize() {
    const ratio = window.devicePixelRatio || 1;
    const { clientWidth: width, clientHeight: height } = this.canvas;
    for (const canvas of [this.canvas, this.overlay])
      [canvas.width, canvas.height] = [Math.max(1, Math.round(width * ratio)), Math.max(1, Math.round(height * ratio))];
    const untouched = this.view && this.view.scale === this.fitted;
    if (untouched) this.fit();
    this.pending = cancelAnimationFrame(this.pending) ?? null;
    this.paint(); // at once: a resized canvas is blank
  }

  restore() {
    this.layer.build();
    this.layer.points(this.x, this.y);
    this.layer.fill("code", this.codes);
    this.layer.lit(this.props.lit ?? []);
    this.recolor();
    this.restate();
  }

  useTool(name) {
    if (name === "in" || name === "out") this.zoom(name === "in" ? 1.5 : 1 / 1.5);
    else if (name === "fit") this.fit();
    else if (name in TOOLS) {
      this.tool = name;
      this.stage.dataset.tool = name;
      for (const item of this.tools.querySelectorAll("[aria-pressed]")) item.setAttribute("aria-pressed", item.dataset.tool === name);
    }
  }

  down(event) {
    if (event.button || !this.view) return;
    this.canvas.setPointerCapture(event.pointerId);
    this.canvas.focus({ preventScroll: true }); // so that Escape is heard; keys alone show the ring
    this.canvas.dataset.quiet = "";
    const at = [event.offsetX, event.offsetY];
    this.pointers.set(event.pointerId, at);
    this.pressed = at;
    this.dragged = false;
    this.gesture = this.pointers.size > 1 ? "pinch" : event.shiftKey && this.tool === "pan" ? "lasso" : this.tool;
    this.drawing = null;
    this.hover(-1);
  }

  moved(event) {
    if (!this.view) return;
    const at = [event.offsetX, event.offsetY];
    const last = this.pointers.get(event.pointerId);
    if (!last) return event.pointerType === "touch" ? undefined : this.hover(this.nearest(at), at);
    this.dragged ||= Math.hypot(at[0] - this.pressed[0], at[1] - this.pressed[1]) > CLICK_SLOP;
    if (this.gesture === "pinch") this.pinch(event.pointerId, at);
    else if (this.dragged && this.gesture === "pan") this.move(at[0] - last[0], at[1] - last[1]);
    else if (this.dragged) this.outline(at);
    this.pointers.set(event.pointerId, at);
  }

  outline(at) {
    const [x, y] = this.pressed;
    if (this.gesture === "box") this.drawing = [[x, y], [at[0], y], at, [x, at[1]]];
    else {
      this.drawing ??= [this.pressed];
      const last = this.drawing.at(-1);
      if (Math.hypot(at[0] - last[0], at[1] - last[1]) >= 3) this.drawing.push(at);
    }
    this.redraw();
  }

  pinch(id, at) {
    const other = [...this.pointers].find(([key]) => key !== id)?.[1];
    const last = this.pointers.get(id);
    if (!other) return;
    const spread = (a) => Math.hypot(a[0] - other[0], a[1] - other[1]) || 1;
    this.move((at[0] - last[0]) / 2, (at[1] - last[1]) / 2);
    this.zoom(spread(at) / spread(last), (at[0] + other[0]) / 2, (at[1] + other[1]) / 2);
  }

  up(event) {
    if (!this.pointers.delete(event.pointerId) || this.pointers.size) return;
    const drawing = this.drawing;
    this.drawing = null;
    if (event.type === "pointercancel") return this.redraw();
    if (!this.dragged && this.gesture !== "pinch") {
      const row = this.nearest([event.offsetX, event.offsetY]);
      if (row >= 0) this.pick(row, event);
    } else if (drawing?.length > 2) {
      const step = Math.ceil(drawing.length / 400);
      this.polygon = drawing.filter((_, i) => i % step === 0).map(([px, py]) => this.toData(px, py));
      this.tell();
    }
    this.redraw();
  }

  pick(row, event) {
    if (event.pointerType === "touch") this.hover(row, [event.offsetX, event.offsetY]); // as pointing would
    document.querySelector(this.props.panel)?.scrollTo(0, 0);
    this.trigger("pick", row);
  }

  key(event) {
    delete this.canvas.dataset.quiet;
    const moves = { ArrowLeft: [60, 0], ArrowRight: [-60, 0], ArrowUp: [0, 60], ArrowDown: [0, -60] };
    if (moves[event.key]) this.move(...moves[event.key]);
    else if (event.key === "+" || event.key === "=") this.zoom(1.25);
    else if (event.key === "-") this.zoom(0.8);
    else if (event.key === "0") this.fit();
    else if (event.key === "Escape") this.clear();
    else return;
    event.preventDefault();
  }

  /* ---- hover */

  nearest([px, py]) {
    if (!this.cells) return -1;
    return this.cells.nearest(...this.toData(px, py), PICK_RADIUS / this.view.scale, (i) => this.isShown(i));
  }

  hover(row, at) {
    if (at) this.placeTip(at);
    if (row === this.hovered) return;
    this.hovered = row;
    this.stage.dataset.hover = row >= 0;
    clearTimeout(this.waiting);
    if (row < 0) this.tip.hidden = true;
    else this.waiting = setTimeout(() => this.showTip(row, at), 60);
    this.redraw();
  }

  async showTip(row, at) {
    if (!this.infos.has(row)) {
      try {
        this.infos.set(row, await (await fetch(`${this.props.info}/${row}`)).json());
      } catch {
        return; // the server is away; the map still works
      }
    }
    if (row !== this.hovered) return;
    const { id, label } = this.infos.get(row);
    const [image, caption] = this.tip.children;
    image.src = `${this.props.thumbs}/${row}`;
    caption.replaceChildren(make("b", "", {}, label ?? "no label"), make("span", "", {}, id));
    this.tip.hidden = false;
    this.placeTip(at);
  }

  placeTip([px, py]) {
    const { clientWidth: width, clientHeight: height } = this.canvas;
    const { offsetWidth: w, offsetHeight: h } = this.tip;
    const left = px + 18 + w > width ? px - 18 - w : px + 18;
    this.tip.style.transform = `translate(${Math.max(4, left)}px, ${Math.min(Math.max(4, py - h / 2), height - h - 4)}px)`;
  }

  destroy() {
    this.stop.abort();
    this.resized.disconnect();
    cancelAnimationFrame(this.pending);
    clearTimeout(this.waiting);
    this.layer?.gl.getExtension("WEBGL_lose_context")?.loseContext();
    this.frame.remove();
  }
}

function ring(pen, [x, y], radius, width, color) {
  pen.beginPath();
  pen.arc(x, y, radius, 0, 2 * Math.PI);
  pen.lineWidth = width;
  pen.strokeStyle = color;
  pen.stroke();
}

/** Where a new image would lie: a star, so that it is not taken for a point of the gallery. */
function star(pen, [x, y], color, rim) {
  pen.beginPath();
  for (let i = 0; i < 10; i++) {
    const [radius, angle] = [i % 2 ? 5 : 12, (Math.PI * (i - 2.5)) / 5];
    pen.lineTo(x + radius * Math.cos(angle), y + radius * Math.sin(angle));
  }
  pen.closePath();
  pen.fillStyle = color;
  pen.fill();
  pen.lineWidth = 2;
  pen.strokeStyle = rim;
  pen.stroke();
}

async function bytes(url) {
  const answer = await fetch(url);
  if (!answer.ok) throw new Error(`${url}: ${answer.status}`);
  return answer.arrayBuffer();
}

/** Mount a map into `root`; `trigger(name, value)` hears "pick" (a row) and "select". */
export function mount(root, trigger) {
  return new Scatter(root, trigger);
}
