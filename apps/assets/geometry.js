/* geometry.js: points and polygons in a plane; no drawing, no page elements.
 *
 * `inPolygon` is the even-odd rule that dino_core/gallery/selection.py uses too; `Cells` answers
 * questions about a million points without looking at all of them.
 */

const CORNERS = 120; // of an outline that was simplified: it goes into the page's address
const GRID = 20000; // steps across the map that corners are rounded to
const OWN_GRID = 500; // and, deep inside it, steps across the polygon itself

/** Even-odd rule: is (x, y) inside the polygon with these sides, [x0, y0, x1, y1] each? */
function inside(x, y, sides) {
  let odd = false;
  for (const [xi, yi, xj, yj] of sides) if (yi > y !== yj > y && x < ((xj - xi) * (y - yi)) / (yj - yi) + xi) odd = !odd;
  return odd;
}

function sidesOf(polygon) {
  return polygon.map((corner, i) => [...corner, ...polygon.at(i - 1)]);
}

/** Is (x, y) inside the polygon [[x, y], ...]? */
export function inPolygon(x, y, polygon) {
  return inside(x, y, sidesOf(polygon));
}

/** The smallest box around finite points: [x0, y0, x1, y1]. */
export function bounds(x, y) {
  let x0 = Infinity, y0 = Infinity, x1 = -Infinity, y1 = -Infinity;
  for (let i = 0; i < x.length; i++) {
    const px = x[i], py = y[i];
    if (!(px - px === 0 && py - py === 0)) continue; // NaN or infinite
    if (px < x0) x0 = px;
    if (px > x1) x1 = px;
    if (py < y0) y0 = py;
    if (py > y1) y1 = py;
  }
  return x0 <= x1 ? [x0, y0, x1, y1] : [0, 0, 1, 1];
}

/* ---------------------------------------------------------------- outlines */

/** An outline of at most CORNERS corners that stays close to `outline`, [[x, y], ...] in pixels.
 *
 * Douglas and Peucker, "Algorithms for the reduction of the number of points required to represent
 * a digitized line or its caricature", 1973, with a tolerance that grows until few enough are left.
 */
export function simplified(outline) {
  let corners = thinned(outline, 0.5);
  for (let tolerance = 0.7; corners.length > CORNERS; tolerance *= 1.4) corners = thinned(outline, tolerance);
  return corners;
}

function thinned(line, tolerance) {
  const keep = new Uint8Array(line.length);
  keep[0] = keep[line.length - 1] = 1;
  const open = [[0, line.length - 1]];
  while (open.length) {
    const [from, to] = open.pop();
    let furthest = -1, distance = tolerance;
    for (let i = from + 1; i < to; i++) {
      const d = distanceTo(line[i], line[from], line[to]);
      if (d > distance) [furthest, distance] = [i, d];
    }
    if (furthest < 0) continue;
    keep[furthest] = 1;
    open.push([from, furthest], [furthest, to]);
  }
  return line.filter((_, i) => keep[i]);
}

/** From a point to the line through two others; to the first of them where they coincide. */
function distanceTo([x, y], [x0, y0], [x1, y1]) {
  const length = Math.hypot(x1 - x0, y1 - y0);
  if (!length) return Math.hypot(x - x0, y - y0);
  return Math.abs((x1 - x0) * (y - y0) - (y1 - y0) * (x - x0)) / length;
}

/** A polygon with its corners on a decimal grid, so that few digits say exactly where they are.
 *
 * `extent`: the larger side of the map. Corners that coincide become one; what has no area is [].
 */
export function rounded(polygon, extent) {
  const [x0, y0, x1, y1] = bounds(polygon.map(([x]) => x), polygon.map(([, y]) => y));
  const step = Math.min(extent / GRID, Math.max(x1 - x0, y1 - y0) / OWN_GRID);
  if (!(step > 0)) return [];
  const power = Math.floor(Math.log10(step));
  const round = (value) => (power < 0 ? Number(value.toFixed(Math.min(-power, 100))) : Math.round(value / 10 ** power) * 10 ** power);
  const corners = polygon.map((corner) => corner.map(round));
  const apart = corners.filter(([x, y], i) => x !== corners.at(i - 1)[0] || y !== corners.at(i - 1)[1]);
  return apart.length > 2 ? apart : [];
}

/* ---------------------------------------------------------------- many points */

/** Points sorted into square cells. */
export class Cells {
  /** @param box the smallest box around the points, as `bounds` says */
  constructor(x, y, box = bounds(x, y)) {
    this.x = x;
    this.y = y;
    const [x0, y0, x1, y1] = box;
    this.side = Math.max(x1 - x0, y1 - y0, 1e-9) / Math.max(4, Math.min(512, Math.sqrt(x.length / 2)));
    [this.x0, this.y0] = [x0, y0];
    this.columns = Math.floor((x1 - x0) / this.side) + 1;
    this.rows = Math.floor((y1 - y0) / this.side) + 1;
    this.start = new Uint32Array(this.columns * this.rows + 1);
    const cell = new Int32Array(x.length);
    for (let i = 0; i < x.length; i++) {
      const sum = x[i] + y[i];
      cell[i] = sum - sum === 0 ? this.row(y[i]) * this.columns + this.column(x[i]) : -1;
      if (cell[i] >= 0) this.start[cell[i] + 1]++;
    }
    for (let c = 0; c < this.start.length - 1; c++) this.start[c + 1] += this.start[c];
    this.order = new Uint32Array(x.length);
    const next = this.start.slice();
    for (let i = 0; i < x.length; i++) if (cell[i] >= 0) this.order[next[cell[i]]++] = i;
  }

  column(x) { return Math.min(this.columns - 1, Math.max(0, Math.floor((x - this.x0) / this.side))); }
  row(y) { return Math.min(this.rows - 1, Math.max(0, Math.floor((y - this.y0) / this.side))); }

  /** Where in `order` the points of a row's cells from x0 to x1 lie: [from, to). */
  stretch(r, x0, x1) {
    return [this.start[r * this.columns + this.column(x0)], this.start[r * this.columns + this.column(x1) + 1]];
  }

  /** The nearest point within `radius` (data units) for which `counts(i)`, or -1. */
  nearest(x, y, radius, counts) {
    let best = -1, bestSquare = radius * radius;
    for (let r = this.row(y - radius); r <= this.row(y + radius); r++) {
      const [from, to] = this.stretch(r, x - radius, x + radius);
      for (let k = from; k < to; k++) {
        const i = this.order[k];
        const square = (this.x[i] - x) ** 2 + (this.y[i] - y) ** 2;
        if (square < bestSquare && counts(i)) [best, bestSquare] = [i, square];
      }
    }
    return best;
  }

  /** The points inside a box for which `counts(i)`; null when there are more than `most`, or when
   *  looking would take long. */
  within([x0, y0, x1, y1], most, counts) {
    const stretches = [];
    let held = 0;
    for (let r = this.row(y0); r <= this.row(y1); r++) {
      const [from, to] = this.stretch(r, x0, x1);
      if ((held += to - from) > 50000) return null;
      stretches.push([from, to]);
    }
    const found = [];
    for (const [from, to] of stretches)
      for (let k = from; k < to; k++) {
        const i = this.order[k];
        if (this.x[i] < x0 || this.x[i] > x1 || this.y[i] < y0 || this.y[i] > y1 || !counts(i)) continue;
        if (found.push(i) > most) return null;
      }
    return found;
  }

  /** Call `found(i)` for every point inside a polygon. */
  eachInside(polygon, found) {
    const [x0, y0, x1, y1] = bounds(polygon.map(([x]) => x), polygon.map(([, y]) => y));
    const sides = sidesOf(polygon);
    for (let r = this.row(y0); r <= this.row(y1); r++) {
      // Sides that no point of this row lies level with cross nothing; a row more for rounding.
      const [low, high] = [this.y0 + (r - 1) * this.side, this.y0 + (r + 2) * this.side];
      const level = sides.filter(([, yi, , yj]) => Math.max(yi, yj) >= low && Math.min(yi, yj) <= high);
      const [from, to] = this.stretch(r, x0, x1);
      for (let k = from; k < to; k++) {
        const i = this.order[k];
        if (inside(this.x[i], this.y[i], level)) found(i);
      }
    }
  }
}

/** Rows 0..n-1 in a random order that is always the same (mulberry32, Fisher-Yates). */
export function shuffled(n) {
  const order = new Uint32Array(n);
  let seed = 0x9e3779b9;
  for (let i = 0; i < n; i++) {
    seed = (seed + 0x6d2b79f5) | 0;
    let bits = Math.imul(seed ^ (seed >>> 15), seed | 1);
    bits ^= bits + Math.imul(bits ^ (bits >>> 7), bits | 61);
    const at = Math.floor((((bits ^ (bits >>> 14)) >>> 0) / 4294967296) * (i + 1));
    order[i] = order[at];
    order[at] = i;
  }
  return order;
}
