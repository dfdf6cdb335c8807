/* scatter.js: a map of up to a million points that one can move, point at and select from.
 *
 * Pan (drag), zoom (wheel, pinch, + and -), hover for a thumbnail, click for the nearest point,
 * lasso or box (or Shift-drag) for many, Shift to add to what is selected, a legend that filters.
 * Where few points are in sight they are thumbnails. What goes out is small: a row, or polygons in
 * data coordinates with the codes that were shown; which points lie inside is decided again by the
 * receiver (dino_core/gallery/selection.py) with the same even-odd rule and the same corners.
 *
 * Props: {points, codes, thumbs, info, moves: URLs; legend, colors: {light, dark} per code; panel:
 * selector of what scrolls beside the map; selection: {polygons, shown, stamp}; picked: row; lit:
 * rows; query: [x, y]; ease: whether other points of as many rows are traveled to}. Points are
 * float32 [2, n] (all x, then all y), codes uint8 or uint16 [n], moves like points: where the lit
 * rows were before, to be pointed from. Without `thumbs` there are no pictures, without `info` no
 * tips. A point without finite coordinates is not drawn and cannot be picked.
 *
 * Tells: "pick" a row, "select" {polygons, shown, stamp}, "missing" true where there is no WebGL2.
 */

import { Camera } from "./camera.js";
import { format, icon, make } from "./dom.js";
import { bounds, Cells, rounded, simplified } from "./geometry.js";
import { Gestures } from "./gestures.js";
import { Legend } from "./legend.js";
import { arrow, frame, rays, region, ring, star } from "./marks.js";
import { Pictures } from "./pictures.js";
import { FEW, PointLayer, rgb } from "./points.js";
import { Tip } from "./tip.js";

const PICK_RADIUS = 14; // CSS pixels from the pointer to the nearest point that counts as hit
const FAINT = 1; // state of a point outside the filter or the selection
const SETTLED = 150; // milliseconds after the last movement
const TRAVEL = 600; // milliseconds to new places
const MOST_PICTURES = 150; // points in sight that may be thumbnails
const PICTURE_DEPTH = 1.4; // how far one has to zoom in for that
const MOST_ARROWS = 200;
const TOOLS = [
  ["pan", "Move", "M12 3v18M3 12h18M12 3l-3 3M12 3l3 3M12 21l-3-3M12 21l3-3M3 12l3-3M3 12l3 3M21 12l-3-3M21 12l-3 3"],
  ["lasso", "Lasso (Shift-drag); with Shift it adds to the selection", "M8 15.300C5 14.300 3 12.200 3 9.700 3 6.500 7 4 12 4s9 2.500 9 5.700-4 5.700-9 5.700c-.7 0-1.400 0-2-.1M8 15.300a2 2 0 1 1-2.600 2c.2 1.700.7 2.900 2 3.900"],
  ["box", "Box; with Shift it adds to the selection", "M4 8V4h4M16 4h4v4M20 16v4h-4M8 20H4v-4M11 4h2M11 20h2M4 11v2M20 11v2"],
];
const ACTIONS = [
  ["in", "Zoom in (+)", "M12 5v14M5 12h14"],
  ["out", "Zoom out (−)", "M5 12h14"],
  ["fit", "Show everything (double-click)", "M9 4H4v5M15 4h5v5M20 15v5h-5M4 15v5h5"],
];

class Scatter {
  /** @param trigger called with ("pick", row), ("select", {polygons, shown, stamp}) or ("missing", true) */
  constructor(root, trigger) {
    this.trigger = trigger;
    this.props = {};
    this.camera = new Camera();
    this.polygons = []; // in data coordinates
    this.drawing = null; // an outline that is being drawn, in CSS pixels
    this.shown = new Set(); // codes that the legend filters to; empty: all
    this.stamp = 0; // of the last selection made here
    this.focus = -1; // code that is pointed at in the legend
    this.hovered = -1; // row that is pointed at
    this.x = this.y = new Float32Array(0);
    this.codes = new Uint8Array(0);
    this.way = 1; // of a travel to new places: 0 at its start, 1 when there is none
    this.pictures = new Pictures(() => this.remark());
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
      console.warn(error);
      this.trigger("missing", true);
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
      const names = ["points", "codes", "moves"].filter((name) => props[name] !== before[name]);
      const got = Object.fromEntries(await Promise.all(names.map(async (name) => [name, props[name] ? await bytes(props[name]) : null])));
      if (got.points) this.showPoints(...halves(got.points), props.ease);
      if (got.codes) this.showCodes(codesOf(got.codes, this.x.length));
      if ("moves" in got) this.moves = got.moves && halves(got.moves);
    } catch (error) {
      console.error(error);
      this.props = {}; // so that the next update tries again
      return this.say("The map could not be loaded; the server may have stopped. Reload the page to try again.");
    }
    this.props = props;
    if (props.thumbs !== this.pictures.address) this.pictures.forget(props.thumbs);
    if (JSON.stringify(props.legend) !== JSON.stringify(before.legend)) {
      this.focus = -1; // the entry that was pointed at is gone, and will not say so
      this.legend.show(props.legend, props.colors);
    }
    const told = props.selection;
    if (told && told.stamp >= this.stamp) [this.polygons, this.shown, this.stamp] = [told.polygons ?? [], new Set(told.shown), told.stamp];
    this.layer?.lit(this.marked());
    this.recolor();
    this.restate();
    if (this.layer) this.say(this.x.length ? "" : "There is no point on this map yet.");
    this.frame.dataset.ready = "true";
  }

  showPoints(x, y, ease) {
    const from = [this.x, this.y];
    const eased = ease && this.layer && x.length === this.x.length && x.length > 0 && !still();
    if (eased && this.way < 1) from.forEach((_, axis) => (from[axis] = this.between(axis)));
    [this.x, this.y] = [x, y];
    this.extent = bounds(x, y);
    this.reach = null; // of the moves that belonged to others
    this.sorted = null;
    this.polygons = [];
    this.hovered = -1;
    this.layer?.points(x, y);
    if (this.codes.length !== x.length) this.showCodes(new Uint8Array(x.length)); // until the right ones are here
    if (eased) this.depart(...from);
    else {
      this.way = 1;
      this.fit();
      this.moved(); // a million points are a second's work for a computer without a GPU
    }
  }

  /** Where the lit rows were before; that too is kept in sight. */
  async loadMoves(url) {
    this.moves = url ? halves(await bytes(url)) : null;
    const old = this.moves && bounds(...this.moves);
    this.reach = old && old.map((value, i) => (i < 2 ? Math.min : Math.max)(value, this.extent[i]));
    if (this.camera.isFitted && this.way === 1) this.fit();
  }

  /** Let the points travel from where they were; the view goes along where it showed everything. */
  depart(x, y) {
    this.layer.depart(x, y);
    const goal = this.camera.isFitted || this.travel?.goal ? this.camera.around(this.reach ?? this.extent, this.taken()) : null;
    this.travel = { x, y, start: performance.now(), view: this.camera.view && { ...this.camera.view }, goal };
    this.way = 0;
    this.redraw();
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
    this.palette = this.props.colors?.[dark ? "dark" : "light"] ?? [];
    this.layer?.palette(this.palette);
    this.redraw();
  }

  /* ---- what is shown, what is selected */

  /** The points in cells; sorted when they are first asked for. */
  get cells() {
    return (this.sorted ??= new Cells(this.x, this.y, this.extent));
  }

  isShown(row) {
    return !this.filter || this.filter[this.codes[row]] === 1;
  }

  /** Is it neither filtered out nor outside of what is selected? */
  isPlain(row) {
    return !this.state || this.state[row] !== FAINT;
  }

  /** Recompute which points are faint, and say how many are selected. */
  restate() {
    const { polygons, shown, x } = this;
    const some = Boolean(polygons.length || shown.size);
    this.filter = shown.size ? flags(shown) : null;
    this.state = some ? new Uint8Array(x.length).fill(FAINT) : null;
    const selected = some ? this.choose(this.state) : x.length;
    this.anyFaint = selected < x.length;
    if (this.anyFaint) this.layer?.fill("state", this.state);
    else this.layer?.clear("state");
    this.count.textContent = some ? `${format(selected)} of ${format(x.length)} selected` : `${format(x.length)} images`;
    this.clearButton.hidden = !some;
    this.frame.dataset.selected = some ? selected : 0;
    this.legend.mark(shown);
    this.redraw();
  }

  /** Set the `state` of what is selected to 0; returns how many that are. */
  choose(state) {
    let selected = 0;
    const take = (row) => {
      if (state[row] !== FAINT || !this.isShown(row)) return;
      state[row] = 0;
      selected++;
    };
    if (this.polygons.length) for (const polygon of this.polygons) this.cells.eachInside(polygon, take);
    else for (let i = 0; i < state.length; i++) if (Number.isFinite(this.x[i] + this.y[i])) take(i);
    return selected;
  }

  tell() {
    this.stamp = Date.now();
    this.restate();
    document.querySelector(this.props.panel)?.scrollTo(0, 0);
    this.trigger("select", { polygons: this.polygons, shown: [...this.shown], stamp: this.stamp });
  }

  clear() {
    if (!this.polygons.length && !this.shown.size) return;
    this.polygons = [];
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
    this.moved();
  }

  /** Select what lies inside an outline, in pixels; `add`: together with what is selected. */
  enclose(outline, add) {
    const [x0, y0, x1, y1] = this.extent;
    const corners = simplified(outline).map((place) => this.camera.toData(...place));
    const polygon = rounded(corners, Math.max(x1 - x0, y1 - y0, 1e-6));
    if (!polygon.length) return;
    this.polygons = [...(add ? this.polygons : []), polygon];
    this.tell();
  }

  click(px, py) {
    const row = this.nearest(px, py);
    if (row < 0) return;
    document.querySelector(this.props.panel)?.scrollTo(0, 0);
    this.trigger("pick", row);
  }

  /* ---- view */

  fit() {
    const [width, height] = this.camera.size;
    if (!width || !height || !this.extent) return;
    this.camera.fit(this.camera.around(this.reach ?? this.extent, this.taken()), this.x.length);
    this.redraw();
  }

  /** What the tools cover: [pixels at the left, pixels at the top], one of them 0. */
  taken() {
    const { offsetLeft, offsetTop, offsetWidth, offsetHeight } = this.tools;
    return offsetHeight > offsetWidth ? [offsetLeft + offsetWidth, 0] : [0, offsetTop + offsetHeight];
  }

  zoom(...how) {
    if (!this.camera.view) return;
    this.camera.zoom(...how);
    this.moved();
  }

  move(dx, dy) {
    if (!this.camera.view) return;
    this.camera.move(dx, dy);
    this.moved();
  }

  /** Something moves: draw few points until it has come to rest. */
  moved() {
    this.moving = true;
    clearTimeout(this.settling);
    this.settling = setTimeout(() => {
      this.moving = false;
      this.redraw();
    }, SETTLED);
    this.redraw();
  }

  /** Diameter of a point in CSS pixels: smaller in a crowd and on a small map, larger zoomed in. */
  pointSize() {
    const crowd = Math.min(9, Math.max(1.6, 24 * this.x.length ** -0.18));
    const room = Math.min(1.2, Math.max(0.7, Math.min(...this.camera.size) / 560));
    return Math.min(16, crowd * room * Math.max(0.8, this.camera.depth ** 0.3));
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
    if (!this.camera.view) this.fit();
    if (!this.camera.view || !this.surface) return;
    if (this.way < 1) this.goOn();
    const [width, height] = this.camera.size;
    const ratio = this.canvas.width / width;
    if (this.stale) this.paintPoints(width, height, ratio);
    this.stale = false;
    this.paintMarks(width, height, ratio);
  }

  /** The next step of a travel. */
  goOn() {
    const { start, view, goal } = this.travel;
    this.way = Math.min(1, (performance.now() - start) / TRAVEL);
    if (goal && view) for (const name in view) this.camera.view[name] = (1 - this.way) * view[name] + this.way * goal[name];
    if (this.way < 1) return this.redraw();
    this.travel = null;
    this.layer.arrive();
    if (goal) this.fit();
    this.redraw();
  }

  paintPoints(width, height, ratio) {
    const { view } = this.camera;
    const few = (this.moving || this.way < 1) && this.x.length > FEW;
    const drawn = this.layer?.draw({
      center: [view.x, view.y],
      scale: [(2 * view.scale) / width, (2 * view.scale) / height],
      size: this.pointSize() * ratio * (few ? 1.15 : 1),
      alpha: few ? 0.85 : this.x.length > 20000 ? 0.6 : 0.88,
      focus: this.focus,
      surface: this.surface,
      faint: this.faint,
      anyFaint: this.anyFaint,
      few,
      way: this.way,
    });
    if (String(drawn) !== this.frame.dataset.drawn) requestAnimationFrame(() => performance.mark(`map: ${drawn}`)); // it is seen by then
    this.frame.dataset.drawn = drawn ?? 0;
  }

  paintMarks(width, height, ratio) {
    const pen = this.overlay.getContext("2d");
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    pen.clearRect(0, 0, width, height);
    pen.lineJoin = "round";
    const { picked, lit = [], query } = this.props;
    const inside = (row) => row != null && row >= 0 && row < this.x.length;
    const at = (row) => this.camera.toPixel(...this.place(row));
    const outlines = this.polygons.map((polygon) => polygon.map((corner) => this.camera.toPixel(...corner)));
    if (this.drawing) outlines.push(this.drawing);
    for (const outline of outlines) region(pen, outline, this.accent);
    const near = lit.filter(inside);
    if (this.moves) for (const row of near.slice(0, MOST_ARROWS)) this.pointFrom(pen, row, at(row));
    const middle = query ? this.camera.toPixel(...query) : inside(picked) ? at(picked) : null;
    if (middle) rays(pen, middle, near.map(at), this.accent);
    this.paintPictures(pen, at, near);
    const size = this.pointSize();
    const mark = (row, radius, line) => {
      const place = this.pictures.frame(row);
      if (place) frame(pen, place, 2 * line, this.accent);
      else ring(pen, at(row), radius, line, this.accent);
    };
    if (middle) for (const row of near) mark(row, size * 0.85 + 1.5, 1.5);
    if (middle && query) star(pen, middle, this.accent, `rgb(${this.surface})`);
    else if (middle) mark(picked, size * 0.85 + 4, 2.5);
    if (inside(this.hovered)) mark(this.hovered, size / 2 + 3, 1.5);
  }

  pointFrom(pen, row, to) {
    const [x, y] = this.moves.map((values) => values[row]);
    if (Number.isFinite(x + y)) arrow(pen, this.camera.toPixel(x, y), to, this.accent);
  }

  /** Thumbnails in the place of points, where few enough are in sight. */
  paintPictures(pen, at, near) {
    const first = new Set([this.props.picked, ...near]);
    const rows = this.way < 1 ? [] : this.picturable();
    const placed = this.pictures.paint(pen, rows, {
      at,
      color: (row) => this.palette[this.codes[row]] ?? this.accent,
      rank: (row) => (first.has(row) ? -1 : this.layer.placeOf[row]),
      size: this.camera.size,
      now: performance.now(),
    });
    if (!this.moving) this.pictures.want(placed);
    this.frame.dataset.pictures = this.pictures.drawn.length;
  }

  picturable() {
    if (!this.layer || !this.props.thumbs || !this.x.length || this.camera.depth < PICTURE_DEPTH) return [];
    return this.cells.within(this.camera.box(), MOST_PICTURES, (row) => this.isPlain(row)) ?? [];
  }

  /** Where a row's point is, also on its way. */
  place(row) {
    const [x, y] = [this.x[row], this.y[row]];
    if (this.way >= 1 || !Number.isFinite(this.travel.x[row] + this.travel.y[row])) return [x, y];
    return [(1 - this.way) * this.travel.x[row] + this.way * x, (1 - this.way) * this.travel.y[row] + this.way * y];
  }

  /** Where all points are along an axis, in the middle of a travel. */
  between(axis) {
    const [from, to] = axis ? [this.travel.y, this.y] : [this.travel.x, this.x];
    return to.map((value, i) => (1 - this.way) * from[i] + this.way * value);
  }

  /* ---- events */

  listen() {
    const { signal } = this.stop;
    const on = (target, kind, handler) => target.addEventListener(kind, handler, { signal });
    this.gestures = new Gestures(this.canvas, {
      move: (dx, dy) => this.move(dx, dy),
      zoom: (...how) => this.zoom(...how),
      fit: () => this.fit(),
      click: (px, py) => this.click(px, py),
      draw: (outline) => { this.drawing = outline; this.remark(); },
      enclose: (outline, add) => this.camera.view && this.enclose(outline, add),
      point: (px, py) => this.hover(this.nearest(px, py), px, py),
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
    const [width, height] = [this.canvas.clientWidth, this.canvas.clientHeight];
    this.camera.size = [width, height];
    for (const canvas of [this.canvas, this.overlay])
      [canvas.width, canvas.height] = [Math.max(1, Math.round(width * ratio)), Math.max(1, Math.round(height * ratio))];
    if (this.camera.isFitted) this.fit(); // not zoomed: keep everything in sight
    this.stale = true;
    this.paint(); // at once: a resized canvas is blank
  }

  /** The browser took the graphics context away and gives a new, empty one. */
  restore() {
    this.way = 1;
    this.layer.build();
    this.layer.points(this.x, this.y);
    this.layer.fill("code", this.codes);
    this.layer.lit(this.marked());
    this.recolor();
    this.restate();
  }

  /* ---- hover */

  /** The row at a pixel: of the thumbnail there, or of the point nearest to it; or -1. */
  nearest(px, py) {
    if (!this.camera.view || !this.x.length || this.way < 1) return -1;
    const pictured = this.pictures.hit(px, py);
    if (pictured >= 0) return pictured;
    return this.cells.nearest(...this.camera.toData(px, py), PICK_RADIUS / this.camera.view.scale, (row) => this.isShown(row));
  }

  hover(row, px, py) {
    if (row >= 0 && row === this.hovered) this.tip.place([px, py], this.camera.size);
    if (row === this.hovered) return;
    this.hovered = row;
    this.stage.dataset.hover = row >= 0;
    if (row < 0 || !this.props.info) this.tip.hide();
    else this.tip.show(row, this.props, [px, py], this.camera.size);
    this.remark();
  }

  destroy() {
    this.stop.abort();
    this.resized.disconnect();
    cancelAnimationFrame(this.pending);
    clearTimeout(this.settling);
    this.pictures.forget("");
    this.tip.hide();
    this.layer?.gl.getExtension("WEBGL_lose_context")?.loseContext();
    this.frame.remove();
  }
}

/** Whether people asked their system for less movement. */
function still() {
  return matchMedia("(prefers-reduced-motion: reduce)").matches;
}

/** By code: 1 where it is among `codes`. */
function flags(codes) {
  const found = new Uint8Array(65536);
  for (const code of codes) found[code] = 1;
  return found;
}

/** Codes of one byte or of two, told apart by how many there are. */
function codesOf(raw, count) {
  return raw.byteLength === 2 * count ? new Uint16Array(raw) : new Uint8Array(raw);
}

function halves(raw) {
  const values = new Float32Array(raw);
  return [values.subarray(0, values.length / 2), values.subarray(values.length / 2)];
}

async function bytes(url) {
  const answer = await fetch(url);
  if (!answer.ok) throw new Error(`${url}: ${answer.status}`);
  return answer.arrayBuffer();
}

/** Mount a map into `root`; `trigger(name, value)` hears "pick" (a row), "select" and "missing". */
export function mount(root, trigger) {
  return new Scatter(root, trigger);
}
