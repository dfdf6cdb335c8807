/* drift.js: a run's held-out images as points that move from check to check.
 *
 * A few thousand points on a 2D canvas. Lines go from the query to its nearest neighbors at the check,
 * and its own way over all checks is drawn faintly. A point that is pointed at tells what it is; a click
 * makes it the query.
 */

import { make } from "./dom.js";
import { inks } from "./timeline.js";
import { Tip } from "./tip.js";

const MARGIN = 26; // CSS pixels around all points
const REACH = 14; // CSS pixels from the pointer to a point that counts as hit
const MOST_NAMED = 24; // classes in the legend

export class Drift {
  constructor({ choose }) {
    [this.choose, this.at, this.query, this.near, this.focus] = [choose, 0, -1, [], -1];
    this.canvas = make("canvas", "", { role: "img", "aria-label": "Map of the held-out images at this check" });
    this.tip = new Tip();
    this.message = make("p", "note");
    this.legend = make("ul", "legend");
    this.stage = make("div", "sea", {}, this.canvas, this.tip.element, this.message);
    this.element = make("div", "drift", {}, this.stage, this.legend);
    this.canvas.addEventListener("pointermove", (event) => this.point(event));
    this.canvas.addEventListener("pointerleave", () => this.point(null));
    this.canvas.addEventListener("click", (event) => {
      const row = this.hit(event);
      if (row >= 0) this.choose(row);
    });
    this.sized = new ResizeObserver(() => this.paint());
    this.sized.observe(this.canvas);
  }

  /** What the images are: {ids, labels, classes, light, dark}; `tiles` the address of their pictures. */
  describe(about, tiles, dark) {
    [this.about, this.thumbs] = [about, tiles];
    const counts = about.classes.map(() => 0);
    for (const label of about.labels) if (label >= 0) counts[label]++;
    this.there = counts.flatMap((count, code) => (count ? [code] : [])).sort((a, b) => counts[b] - counts[a] || a - b);
    this.theme(dark);
  }

  theme(dark) {
    if (!this.about) return;
    this.palette = this.about[dark ? "dark" : "light"];
    const shown = this.there.slice(0, MOST_NAMED);
    this.legend.replaceChildren(...shown.map((code) => {
      const button = make("button", "entry", { type: "button", "aria-pressed": code === this.focus },
        make("i", "dot", { style: `background: ${this.palette[code]}` }), this.about.classes[code]);
      button.addEventListener("click", () => {
        this.focus = this.focus === code ? -1 : code;
        this.theme(dark);
      });
      return make("li", "", {}, button);
    }));
    if (this.there.length > shown.length) this.legend.append(make("li", "", {}, `and ${this.there.length - shown.length} more`));
    this.paint();
  }

  /** The maps of a run: points float32 [T', n, 2] of the checks `at`, numbers of the slider. */
  map(points, at) {
    [this.points, this.places] = [points, at];
    this.count = points ? points.length / 2 / at.length : 0;
    this.message.textContent = points ? "" : "The map is being made …";
    if (points) this.extent = extent(points);
    this.paint();
  }

  /** Where all images are at a place between checks: [x], [y] in CSS pixels. */
  placed(at) {
    const { places, points, count } = this;
    let after = places.findIndex((place) => place >= at);
    if (after < 0) after = places.length - 1;
    const before = Math.max(after - 1, 0);
    const span = places[after] - places[before];
    const share = span ? Math.min(Math.max((at - places[before]) / span, 0), 1) : 1;
    const [a, b] = [2 * count * before, 2 * count * after];
    const [x0, y0, x1, y1] = this.extent;
    const { clientWidth: width, clientHeight: height } = this.canvas;
    const scale = Math.min((width - 2 * MARGIN) / (x1 - x0 || 1), (height - 2 * MARGIN) / (y1 - y0 || 1));
    const [x, y] = [new Float32Array(count), new Float32Array(count)];
    for (let i = 0; i < count; i++) {
      const px = points[a + 2 * i] + share * (points[b + 2 * i] - points[a + 2 * i]);
      const py = points[a + 2 * i + 1] + share * (points[b + 2 * i + 1] - points[a + 2 * i + 1]);
      x[i] = width / 2 + scale * (px - (x0 + x1) / 2);
      y[i] = height / 2 - scale * (py - (y0 + y1) / 2);
    }
    return [x, y];
  }

  show(at, query, near) {
    [this.at, this.query, this.near] = [at, query, near];
    this.paint();
  }

  paint() {
    const { clientWidth: width, clientHeight: height } = this.canvas;
    if (!width || !height) return;
    const ratio = devicePixelRatio || 1;
    [this.canvas.width, this.canvas.height] = [Math.round(width * ratio), Math.round(height * ratio)];
    if (!this.points || this.about?.ids.length !== this.count) return; // still of another run
    const pen = this.canvas.getContext("2d");
    pen.scale(ratio, ratio);
    const [accent, surface, faint, text] = inks(this.element, ["--d-accent", "--d-surface", "--d-line-strong", "--d-text"]);
    [this.x, this.y] = this.placed(this.at);
    const { x, y, palette, query } = this;
    this.paintWay(pen, accent);
    const size = Math.min(5, Math.max(1.6, 60 / Math.sqrt(this.count)));
    const labels = this.about.labels;
    const codes = labels.map((label) => (label < 0 ? palette.length - 1 : label));
    for (const front of [false, true]) {
      for (let i = 0; i < this.count; i++) {
        const plain = this.focus < 0 || codes[i] === this.focus;
        if (plain !== front) continue;
        pen.globalAlpha = plain ? 0.85 : 0.5;
        pen.fillStyle = plain ? palette[codes[i]] : faint;
        pen.beginPath();
        pen.arc(x[i], y[i], plain ? size : size * 0.7, 0, 7);
        pen.fill();
      }
    }
    pen.globalAlpha = 1;
    if (query < 0) return;
    pen.strokeStyle = accent;
    pen.lineWidth = 1.2;
    pen.globalAlpha = 0.75;
    for (const row of this.near) {
      pen.beginPath();
      pen.moveTo(x[query], y[query]);
      pen.lineTo(x[row], y[row]);
      pen.stroke();
    }
    pen.globalAlpha = 1;
    for (const row of this.near) this.disc(pen, row, size + 1, surface, accent, 1.4);
    this.disc(pen, query, size + 3, surface, accent, 2.6);
    if (this.hovered >= 0) this.disc(pen, this.hovered, size + 2, surface, text, 1.8);
  }

  disc(pen, row, radius, surface, edge, line) {
    const label = this.about.labels[row];
    pen.beginPath();
    pen.arc(this.x[row], this.y[row], radius, 0, 7);
    [pen.fillStyle, pen.strokeStyle, pen.lineWidth] = [this.palette[label < 0 ? this.palette.length - 1 : label], edge, line];
    pen.fill();
    pen.stroke();
  }

  /** The query's way over all checks. */
  paintWay(pen, accent) {
    if (this.query < 0 || this.places.length < 2) return;
    pen.strokeStyle = accent;
    [pen.globalAlpha, pen.lineWidth, pen.lineJoin] = [0.32, 2, "round"];
    pen.setLineDash([1, 5]);
    pen.lineCap = "round";
    pen.beginPath();
    for (const place of this.places) {
      const [x, y] = this.placed(place);
      pen.lineTo(x[this.query], y[this.query]);
    }
    pen.stroke();
    pen.setLineDash([]);
    pen.globalAlpha = 1;
  }

  hit(event) {
    if (!this.x) return -1;
    const { left, top } = this.canvas.getBoundingClientRect();
    const [px, py] = [event.clientX - left, event.clientY - top];
    let [best, nearest] = [-1, REACH ** 2];
    for (let i = 0; i < this.count; i++) {
      const square = (this.x[i] - px) ** 2 + (this.y[i] - py) ** 2;
      if (square < nearest) [best, nearest] = [i, square];
    }
    return best;
  }

  point(event) {
    const row = event ? this.hit(event) : -1;
    if (row === this.hovered) return;
    this.hovered = row;
    this.canvas.style.cursor = row < 0 ? "" : "pointer";
    if (row < 0) this.tip.hide();
    else {
      const label = this.about.labels[row];
      const { clientWidth, clientHeight } = this.stage;
      this.tip.infos.set(`held out/${row}`, { id: this.about.ids[row], label: label < 0 ? null : this.about.classes[label] });
      this.tip.show(row, { info: "held out", thumbs: this.thumbs }, [this.x[row], this.y[row]], [clientWidth, clientHeight]);
    }
    this.paint();
  }

  destroy() {
    this.sized.disconnect();
    this.tip.hide();
  }
}

/** The smallest box around all finite points [x, y, x, y, …]: [x0, y0, x1, y1]. */
function extent(points) {
  const box = [Infinity, Infinity, -Infinity, -Infinity];
  points.forEach((value, i) => {
    if (!Number.isFinite(value)) return;
    box[i % 2] = Math.min(box[i % 2], value);
    box[2 + (i % 2)] = Math.max(box[2 + (i % 2)], value);
  });
  return box[0] <= box[2] ? box : [0, 0, 1, 1];
}
