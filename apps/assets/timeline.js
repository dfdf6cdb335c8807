/* timeline.js: a slider over a run's checks that is a chart of what they measured.
 *
 * new Timeline(element, { change: (at) => …, rest: () => … })
 * `at` counts checks from 0 and may lie between two; a drag moves it freely and ends on a check, keys
 * go from check to check.
 */

import { format, make } from "./dom.js";

const EDGE = 10; // CSS pixels left and right of the chart, so that the marker is never cut
const TALL = 64;

export class Timeline {
  constructor({ change, rest }) {
    [this.change, this.rest] = [change, rest];
    [this.at, this.steps, this.curves] = [0, [0], []];
    this.canvas = make("canvas", "curves", { "aria-hidden": "true" });
    this.input = make("input", "check", { type: "range", min: "0", step: "1", "aria-label": "Check" });
    this.ends = make("div", "ends", {}, make("span"), make("span"));
    this.element = make("div", "timeline", {}, this.canvas, this.input, this.ends);
    this.input.addEventListener("input", () => this.change(Number(this.input.value)));
    this.input.addEventListener("change", () => this.rest());
    this.canvas.addEventListener("pointerdown", (event) => this.grab(event));
    this.canvas.addEventListener("pointermove", (event) => this.held && this.follow(event));
    for (const name of ["pointerup", "pointercancel"]) this.canvas.addEventListener(name, () => this.letGo());
    this.sized = new ResizeObserver(() => this.paint());
    this.sized.observe(this.canvas);
  }

  show(steps, curves) {
    [this.steps, this.curves] = [steps, curves];
    this.input.max = steps.length - 1;
    this.input.disabled = steps.length < 2;
    const [first, last] = this.ends.children;
    first.textContent = `step ${format(steps[0])}`;
    last.textContent = steps.length > 1 ? `step ${format(steps.at(-1))}` : "";
  }

  /** Put the marker at a check, or between two. */
  set(at) {
    this.at = at;
    const check = Math.round(at);
    this.input.value = check;
    this.input.setAttribute("aria-valuetext", `step ${this.steps[check]}`);
    this.paint();
  }

  grab(event) {
    if (event.button || this.steps.length < 2) return;
    this.held = true;
    this.canvas.setPointerCapture(event.pointerId);
    this.follow(event);
  }

  follow(event) {
    const { left, width } = this.canvas.getBoundingClientRect();
    const share = (event.clientX - left - EDGE) / (width - 2 * EDGE);
    this.change(Math.min(Math.max(share, 0), 1) * (this.steps.length - 1), true);
  }

  letGo() {
    if (!this.held) return;
    this.held = false;
    this.change(Math.round(this.at));
    this.rest();
  }

  paint() {
    const { clientWidth: width } = this.canvas;
    if (!width) return;
    const ratio = devicePixelRatio || 1;
    [this.canvas.width, this.canvas.height] = [Math.round(width * ratio), Math.round(TALL * ratio)];
    const pen = this.canvas.getContext("2d");
    pen.scale(ratio, ratio);
    const [line, text, surface, ...colors] = inks(this.element,
      ["--d-line-strong", "--d-text", "--d-surface", ...this.curves.map((_, number) => `--curve-${number + 1}`)]);
    const x = (i) => EDGE + (i / Math.max(this.steps.length - 1, 1)) * (width - 2 * EDGE);
    pen.lineJoin = pen.lineCap = "round";
    this.curves.forEach((curve, number) => this.paintCurve(pen, curve, colors[number], line, x));
    const here = x(this.at);
    pen.fillStyle = text;
    pen.fillRect(here - 0.75, 0, 1.5, TALL);
    this.curves.forEach((curve, number) => {
      pen.beginPath();
      pen.arc(here, this.height(curve, this.at), 5.5, 0, 7);
      [pen.fillStyle, pen.strokeStyle, pen.lineWidth] = [colors[number], surface, 2.5];
      pen.fill();
      pen.stroke();
    });
  }

  /** What lies ahead is gray, what is behind has the curve's color. */
  paintCurve(pen, curve, color, line, x) {
    const last = curve.values.length - 1;
    const through = (from, to) => {
      pen.beginPath();
      for (let i = from; ; i = Math.min(Math.floor(i) + 1, to)) {
        pen.lineTo(x(i), this.height(curve, i));
        if (i >= to) break;
      }
      pen.stroke();
    };
    pen.lineWidth = 2;
    pen.strokeStyle = line;
    if (this.at < last) through(this.at, last);
    pen.strokeStyle = color;
    if (this.at > 0) through(0, this.at);
    curve.values.forEach((value, i) => {
      if (value == null || curve.values.length > 60) return;
      pen.fillStyle = i <= this.at ? color : line;
      pen.beginPath();
      pen.arc(x(i), this.height(curve, i), 2.4, 0, 7);
      pen.fill();
    });
  }

  /** Where a curve is at a place, in CSS pixels from the top. */
  height({ values }, at) {
    const known = values.filter((value) => value != null);
    const [low, high] = [Math.min(...known), Math.max(...known)];
    const value = valueAt(values, at) ?? low;
    const share = high > low ? (value - low) / (high - low) : 0.5;
    return 8 + (1 - share) * (TALL - 16);
  }

  destroy() {
    this.sized.disconnect();
  }
}

/** What variables of a style sheet are here and now as colors: a canvas does not know light-dark(). */
export function inks(element, names) {
  const probe = make("i", "", { hidden: "" });
  element.append(probe);
  const colors = names.map((name) => {
    probe.style.color = `var(${name})`;
    return getComputedStyle(probe).color;
  });
  probe.remove();
  return colors;
}

/** A series between two of its values; null where either is unknown. */
export function valueAt(values, at) {
  const [a, b] = [values[Math.floor(at)], values[Math.ceil(at)]];
  return a == null || b == null ? a ?? b ?? null : a + (b - a) * (at - Math.floor(at));
}
