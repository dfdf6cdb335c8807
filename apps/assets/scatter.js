/* scatter.js: a map of up to a million points that one can move, point at and select from.
 *
 * Pan (drag), zoom (wheel, pinch, + and -), hover for a thumbnail, click for the nearest point,
 * lasso or box (or Shift-drag) for many, a legend that filters. What goes out is small: a row, or a
 * polygon in data coordinates with the codes that were shown; which points lie inside is decided
 * again by the receiver (dino_core/gallery/selection.py) with the same even-odd rule.
 *
 * Props: {points, codes, thumbs, info: URLs; legend, colors: {light, dark} per code; panel: selector
 * of what scrolls beside the map; selection: {polygon, shown, stamp}; picked: row; lit: rows;
 * query: [x, y]}. Points are float32 [2, n] (all x, then all y), codes uint8 or uint16 [n]. A point
 * without finite coordinates is not drawn and cannot be picked.
 */

import { format, icon, make } from "./dom.js";
import { Gestures } from "./gestures.js";
import { Legend } from "./legend.js";
import { rays, region, ring, star } from "./marks.js";
import { bounds, Cells, inPolygon, PointLayer, rgb } from "./points.js";
import { Tip } from "./tip.js";

const PICK_RADIUS = 14; // CSS pixels from the pointer to the nearest point that counts as hit
const MOST_CORNERS = 400; // of a polygon
const FAINT = 1; // state of a point outside the filter or the selection
const MARGIN = 28; // CSS pixels around all points
const TOOLS = [
  ["pan", "Move", "M12 3v18M3 12h18M12 3l-3 3M12 3l3 3M12 21l-3-3M12 21l3-3M3 12l3-3M3 12l3 3M21 12l-3-3M21 12l-3 3"],
  ["lasso", "Lasso (Shift-drag)", "M8 15.300C5 14.300 3 12.200 3 9.700 3 6.500 7 4 12 4s9 2.500 9 5.700-4 5.700-9 5.700c-.7 0-1.400 0-2-.1M8 15.300a2 2 0 1 1-2.600 2c.2 1.700.7 2.900 2 3.900"],
  ["box", "Box", "M4 8V4h4M16 4h4v4M20 16v4h-4M8 20H4v-4M11 4h2M11 20h2M4 11v2M20 11v2"],
];
const ACTIONS = [
  ["in", "Zoom in (+)", "M12 5v14M5 12h14"],
  ["out", "Zoom out (−)", "M5 12h14"],
  ["fit", "Show everything (double-click)", "M9 4H4v5M15 4h5v5M20 15v5h-5M4 15v5h5"],
];

class Scatter {
  /** @param trigger called with ("pick", row) or ("select", {polygon, shown, stamp}) */
  constructor(root, trigger) {
    this.trigger = trigger;
    this.props = {};
    this.view = null; // {x, y: data coordinates of the middle, scale: CSS pixels per unit}
    this.polygon = null; // in data coordinates
    this.drawing = null; // an outline that is being drawn, in CSS pixels
    this.shown = new Set(); // codes that the legend filters to; empty: all
    this.stamp = 0; // of the last selection made here
    this.focus = -1; // code that is pointed at in the legend
    this.hovered = -1; // row that is pointed at
    this.x = this.y = new Float32Array(0);
    this.codes = new Uint8Array(0);
    this.stop = new AbortController();
    this.build(root);
    this.begin();
    this.listen();
  }

  build(root) {
    const label = "Map of the images. Arrow keys move, plus and minus zoom, Escape clears the selection.";
    this.canvas = make("canvas", "points", { tabindex: "0", role: "application", "aria-label": label });
    this.overlay = make("canvas", "overlay");
    this.message = make("p", "message", { role: "status" }, "Loading the map…");
    this.tip = new Tip();
    this.count = make("span", "count");
    this.clearButton = make("button", "clear", { type: "button", hidden: "" }, "Clear");
    this.tools = make("div", "tools", { role: "toolbar", "aria-label": "Map tools" });
    const tool = ([name, title, path]) => make("button", "tool", { type: "button", title, "aria-label": title, "data-tool": name }, icon(path));
    this.tools.append(...TOOLS.map(tool), make("hr"), ...ACTIONS.map(tool));
    const state = make("div", "state", {}, this.count, this.clearButton);
    this.stage = make("div", "stage", {}, this.canvas, this.overlay, this.tools, state, this.tip.element, this.message);
    this.legend = new Legend({
      toggle: (code) => this.toggle(code),
      focus: (code) => this.lookAt(code),
    });
    this.frame = make("div", "scatter", { "data-ready": "false" }, this.stage, this.legend.element);
    root.append(this.frame);
  }

  begin() {
    try {
      this.layer = new PointLayer(this.canvas);
    } catch (error) {
      this.say("This browser cannot draw the map: WebGL2 is off or missing. Another browser, or turning on hardware acceleration, mends it.");
      console.error(error);
    }
  }

  say(text) {
    this.message.textContent = text;
    this.message.hidden = !text;
  }

  /* ---- props in */

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
    if (JSON.stringify(props.legend) !== JSON.stringify(before.legend)) {
      this.focus = -1; // the entry that was pointed at is gone, and will not say so
      this.legend.show(props.legend, props.colors);
    }
    const told = props.selection;
    if (told && told.stamp >= this.stamp) [this.polygon, this.shown, this.stamp] = [told.polygon, new Set(told.shown), told.stamp];
    this.layer?.lit(this.marked());
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

  /** Rows drawn large: the picked one, last and so on top, and the lit ones. */
  marked() {
    const { lit = [], picked } = this.props;
    return [...lit, ...(picked == null ? [] : [picked])].filter((row) => row < this.x.length);
  }

  recolor() {
    this.surface = rgb(getComputedStyle(this.frame).backgroundColor);
    const muted = rgb(getComputedStyle(this.message).color);
    this.faint = this.surface.map((value, i) => 0.55 * value + 0.45 * muted[i]);
    this.accent = getComputedStyle(this.count).color;
    const dark = this.surface.reduce((sum, value) => sum + value, 0) < 384;
    this.layer?.palette(this.props.colors?.[dark ? "dark" : "light"] ?? []);
    this.redraw();
  }

  /* ---- what is shown, what is selected */

  isShown(row) {
    return !this.shown.size || this.shown.has(this.codes[row]);
  }

  /** Recompute which points are faint, and say how many are selected. */
  restate() {
    const { polygon, x, y } = this;
    const state = new Uint8Array(x.length);
    const [x0, y0, x1, y1] = polygon ? bounds(polygon.map((corner) => corner[0]), polygon.map((corner) => corner[1])) : [];
    let selected = 0;
    for (let i = 0; i < state.length; i++) {
      const near = !polygon || (x[i] >= x0 && x[i] <= x1 && y[i] >= y0 && y[i] <= y1);
      if (near && Number.isFinite(x[i] + y[i]) && this.isShown(i) && (!polygon || inPolygon(x[i], y[i], polygon))) selected++;
      else state[i] = FAINT;
    }
    this.anyFaint = selected < state.length;
    this.layer?.fill("state", state);
    const some = Boolean(polygon || this.shown.size);
    this.count.textContent = some ? `${format(selected)} of ${format(state.length)} selected` : `${format(state.length)} images`;
    this.clearButton.hidden = !some;
    this.frame.dataset.selected = some ? selected : 0;
    this.legend.mark(this.shown);
    this.redraw();
  }

  tell() {
    this.stamp = Date.now();
    this.restate();
    document.querySelector(this.props.panel)?.scrollTo(0, 0);
    this.trigger("select", { polygon: this.polygon, shown: [...this.shown], stamp: this.stamp });
  }

  clear() {
    if (!this.polygon && !this.shown.size) return;
    this.polygon = null;
    this.shown.clear();
    this.tell();
  }

  toggle(code) {
    if (!this.shown.delete(code)) this.shown.add(code);
    this.focus = -1;
    this.tell();
  }

  lookAt(code) {
    this.focus = this.shown.size ? -1 : code;
    this.redraw();
  }

  enclose(outline) {
    const step = Math.ceil(outline.length / MOST_CORNERS);
    this.polygon = outline.filter((_, i) => i % step === 0).map((place) => this.toData(...place));
    this.tell();
  }

  click(px, py) {
    const row = this.nearest(px, py);
    if (row < 0) return;
    document.querySelector(this.props.panel)?.scrollTo(0, 0);
    this.trigger("pick", row);
  }

  /* ---- view */

  get size() {
    return [this.canvas.clientWidth, this.canvas.clientHeight];
  }

  fit() {
    const [width, height] = this.size;
    if (!width || !height) return;
    const [x0, y0, x1, y1] = bounds(this.x, this.y);
    const [left, top] = this.taken();
    const across = (width - left - 2 * MARGIN) / Math.max(x1 - x0, 1e-6);
    const upright = (height - top - 3 * MARGIN) / Math.max(y1 - y0, 1e-6); // the count is at the foot
    this.fitted = Math.max(Math.min(across, upright), 1e-6);
    const shift = [left / 2 / this.fitted, (top - MARGIN) / 2 / this.fitted];
    this.view = { x: (x0 + x1) / 2 - shift[0], y: (y0 + y1) / 2 + shift[1], scale: this.fitted };
    this.redraw();
  }

  /** What the tools cover: [pixels at the left, pixels at the top], one of them 0. */
  taken() {
    const { offsetLeft, offsetTop, offsetWidth, offsetHeight } = this.tools;
    return offsetHeight > offsetWidth ? [offsetLeft + offsetWidth, 0] : [0, offsetTop + offsetHeight];
  }

  zoom(factor, px = this.size[0] / 2, py = this.size[1] / 2) {
    if (!this.view) return;
    const [x, y] = this.toData(px, py);
    this.view.scale = Math.min(this.fitted * 400, Math.max(this.fitted * 0.4, this.view.scale * factor));
    const [movedX, movedY] = this.toData(px, py);
    this.view.x += x - movedX;
    this.view.y += y - movedY;
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
    return [x + (px - this.size[0] / 2) / scale, y - (py - this.size[1] / 2) / scale];
  }

  toPixel(x, y) {
    const view = this.view;
    return [(x - view.x) * view.scale + this.size[0] / 2, (view.y - y) * view.scale + this.size[1] / 2];
  }

  /** Diameter of a point in CSS pixels: smaller in a crowd and on a small map, larger zoomed in. */
  pointSize() {
    const crowd = Math.min(9, Math.max(1.6, 24 * this.x.length ** -0.18));
    const room = Math.min(1.2, Math.max(0.7, Math.min(...this.size) / 560));
    return Math.min(16, crowd * room * Math.max(0.8, (this.view.scale / this.fitted) ** 0.3));
  }

  /* ---- painting */

  /** Paint everything with the next frame. */
  redraw() {
    this.stale = true;
    this.remark();
  }

  /** Paint what lies over the points with the next frame: a million points stay as they are. */
  remark() {
    this.pending ??= requestAnimationFrame(() => {
      this.pending = null;
      this.paint();
    });
  }

  paint() {
    if (!this.view) this.fit();
    if (!this.view || !this.surface) return;
    const [width, height] = this.size;
    const ratio = this.canvas.width / width;
    if (this.stale) this.paintPoints(width, height, ratio);
    this.stale = false;
    this.paintMarks(width, height, ratio);
  }

  paintPoints(width, height, ratio) {
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
  }

  paintMarks(width, height, ratio) {
    const pen = this.overlay.getContext("2d");
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    pen.clearRect(0, 0, width, height);
    pen.lineJoin = "round";
    const { picked, lit = [], query } = this.props;
    const inside = (row) => row != null && row >= 0 && row < this.x.length;
    const at = (row) => this.toPixel(this.x[row], this.y[row]);
    const outline = this.drawing ?? this.polygon?.map((corner) => this.toPixel(...corner));
    if (outline) region(pen, outline, this.accent);
    const middle = query ? this.toPixel(...query) : inside(picked) ? at(picked) : null;
    const radius = this.pointSize() * 0.85;
    if (middle) rays(pen, middle, lit.filter(inside).map(at), radius + 1.5, this.accent);
    if (middle && query) star(pen, middle, this.accent, `rgb(${this.surface})`);
    else if (middle) ring(pen, middle, radius + 4, 2.5, this.accent);
    if (inside(this.hovered)) ring(pen, at(this.hovered), this.pointSize() / 2 + 3, 1.5, this.accent);
  }

  /* ---- events */

  listen() {
    const { signal } = this.stop;
    const on = (target, kind, handler) => target.addEventListener(kind, handler, { signal });
    this.gestures = new Gestures(this.canvas, {
      move: (dx, dy) => this.move(dx, dy),
      zoom: (...how) => this.zoom(...how),
      fit: () => this.fit(),
      click: (px, py) => this.view && this.click(px, py),
      draw: (outline) => { this.drawing = outline; this.remark(); },
      enclose: (outline) => this.view && this.enclose(outline),
      point: (px, py) => this.view && this.hover(this.nearest(px, py), px, py),
      leave: () => this.hover(-1),
      clear: () => this.clear(),
    }, signal);
    on(this.tools, "click", (event) => this.use(event.target.closest("button")?.dataset.tool));
    on(this.clearButton, "click", () => this.clear());
    on(this.canvas, "webglcontextlost", (event) => event.preventDefault());
    on(this.canvas, "webglcontextrestored", () => this.restore());
    on(this.frame, "transitionend", (event) => event.target === this.frame && this.recolor()); // light to dark
    this.resized = new ResizeObserver(() => this.resize());
    this.resized.observe(this.canvas);
    this.use("pan");
  }

  use(name) {
    if (name === "in" || name === "out") return this.zoom(name === "in" ? 1.5 : 1 / 1.5);
    if (name === "fit") return this.fit();
    if (!name) return;
    this.gestures.tool = this.stage.dataset.tool = name;
    for (const [tool] of TOOLS) this.tools.querySelector(`[data-tool=${tool}]`).setAttribute("aria-pressed", tool === name);
  }

  resize() {
    const ratio = window.devicePixelRatio || 1;
    const [width, height] = this.size;
    for (const canvas of [this.canvas, this.overlay])
      [canvas.width, canvas.height] = [Math.max(1, Math.round(width * ratio)), Math.max(1, Math.round(height * ratio))];
    if (this.view?.scale === this.fitted) this.fit(); // not zoomed: keep everything in sight
    this.stale = true;
    this.paint(); // at once: a resized canvas is blank
  }

  /** The browser took the graphics context away and gives a new, empty one. */
  restore() {
    this.layer.build();
    this.layer.points(this.x, this.y);
    this.layer.fill("code", this.codes);
    this.layer.lit(this.marked());
    this.recolor();
    this.restate();
  }

  /* ---- hover */

  nearest(px, py) {
    return this.cells?.nearest(...this.toData(px, py), PICK_RADIUS / this.view.scale, (row) => this.isShown(row)) ?? -1;
  }

  hover(row, px, py) {
    if (row >= 0 && row === this.hovered) this.tip.place([px, py], this.size);
    if (row === this.hovered) return;
    this.hovered = row;
    this.stage.dataset.hover = row >= 0;
    if (row < 0) this.tip.hide();
    else this.tip.show(row, this.props, [px, py], this.size);
    this.remark();
  }

  destroy() {
    this.stop.abort();
    this.resized.disconnect();
    cancelAnimationFrame(this.pending);
    this.tip.hide();
    this.layer?.gl.getExtension("WEBGL_lose_context")?.loseContext();
    this.frame.remove();
  }
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
