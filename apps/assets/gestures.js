/* gestures.js: what pointers and keys on a map mean: move, zoom, outline a region, click.
 *
 * `on` hears: move(dx, dy), zoom(factor, x, y), fit(), click(x, y), draw(outline or null),
 * enclose(outline, whether Shift was held), point(x, y), leave(), clear(). All places are CSS pixels
 * in the canvas.
 */

const CLICK_SLOP = 4; // CSS pixels a click may move before it is a drag
const STEP = 3; // CSS pixels between two corners of a lasso
const MOVES = { ArrowLeft: [60, 0], ArrowRight: [-60, 0], ArrowUp: [0, 60], ArrowDown: [0, -60] };

export class Gestures {
  constructor(canvas, on, signal) {
    this.canvas = canvas;
    this.on = on;
    this.tool = "pan"; // or "lasso" or "box"; Shift-drag draws a lasso with "pan" too
    this.pointers = new Map();
    const listen = (kind, handler, options = {}) => canvas.addEventListener(kind, handler.bind(this), { signal, ...options });
    listen("pointerdown", this.down);
    listen("pointermove", this.moved);
    listen("pointerup", this.up);
    listen("pointercancel", this.up);
    listen("pointerleave", () => on.leave());
    listen("dblclick", () => on.fit());
    listen("wheel", this.wheel, { passive: false });
    listen("keydown", this.key);
  }

  down(event) {
    if (event.button) return;
    this.canvas.setPointerCapture(event.pointerId);
    this.canvas.focus({ preventScroll: true }); // so that Escape is heard; keys alone show the ring
    this.canvas.dataset.quiet = "";
    this.start = [event.offsetX, event.offsetY];
    this.pointers.set(event.pointerId, this.start);
    this.dragged = false;
    this.shift = event.shiftKey;
    this.gesture = this.pointers.size > 1 ? "pinch" : event.shiftKey && this.tool === "pan" ? "lasso" : this.tool;
    this.outline = null;
    this.on.leave();
  }

  moved(event) {
    const at = [event.offsetX, event.offsetY];
    const last = this.pointers.get(event.pointerId);
    if (!last) {
      if (event.pointerType !== "touch") this.on.point(...at);
      return;
    }
    this.dragged ||= Math.hypot(at[0] - this.start[0], at[1] - this.start[1]) > CLICK_SLOP;
    if (this.gesture === "pinch") this.pinch(event.pointerId, last, at);
    else if (this.dragged && this.gesture === "pan") this.on.move(at[0] - last[0], at[1] - last[1]);
    else if (this.dragged) this.extend(at);
    this.pointers.set(event.pointerId, at);
  }

  extend(at) {
    const [x, y] = this.start;
    if (this.gesture === "box") this.outline = [[x, y], [at[0], y], at, [x, at[1]]];
    else {
      this.outline ??= [this.start];
      const last = this.outline.at(-1);
      if (Math.hypot(at[0] - last[0], at[1] - last[1]) >= STEP) this.outline.push(at);
    }
    this.on.draw(this.outline);
  }

  pinch(id, last, at) {
    const other = [...this.pointers].find(([key]) => key !== id)?.[1];
    if (!other) return;
    const spread = ([x, y]) => Math.hypot(x - other[0], y - other[1]) || 1;
    this.on.move((at[0] - last[0]) / 2, (at[1] - last[1]) / 2);
    this.on.zoom(spread(at) / spread(last), (at[0] + other[0]) / 2, (at[1] + other[1]) / 2);
  }

  up(event) {
    if (!this.pointers.delete(event.pointerId) || this.pointers.size) return;
    const outline = this.outline;
    this.outline = null;
    this.on.draw(null);
    if (event.type === "pointercancel" || this.gesture === "pinch") return;
    if (!this.dragged) this.on.click(event.offsetX, event.offsetY);
    else if (outline?.length > 2) this.on.enclose(outline, this.shift);
  }

  wheel(event) {
    event.preventDefault();
    const pixels = event.deltaY * (event.deltaMode ? 30 : 1); // deltaMode: lines instead of pixels
    this.on.zoom(Math.exp(-0.0016 * pixels), event.offsetX, event.offsetY);
  }

  key(event) {
    delete this.canvas.dataset.quiet;
    if (MOVES[event.key]) this.on.move(...MOVES[event.key]);
    else if (event.key === "+" || event.key === "=") this.on.zoom(1.25);
    else if (event.key === "-") this.on.zoom(0.8);
    else if (event.key === "0") this.on.fit();
    else if (event.key === "Escape") this.on.clear();
    else return;
    event.preventDefault();
  }
}
