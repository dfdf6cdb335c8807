/* pictures.js: thumbnails in the place of points, where few enough of them are in sight.
 *
 * Pictures are fetched a few at a time, only those that are to be seen, and the last ones are kept.
 * One that the server says not to keep stands for a file that is gone: its point stays a point.
 */

const AT_ONCE = 6; // fetches
const KEPT = 400; // pictures
const FADE = 200; // milliseconds
const OVERLAP = 0.3; // share of a thumbnail that another may cover
const [SMALLEST, LARGEST] = [56, 92]; // CSS pixels

export class Pictures {
  /** @param changed called when there is something new to paint */
  constructor(changed) {
    this.changed = changed;
    this.forget("");
  }

  forget(address) {
    for (const stop of this.busy?.values() ?? []) stop.abort();
    for (const { picture } of this.known?.values() ?? []) picture?.close();
    this.address = address;
    this.known = new Map(); // row -> {picture or null, since}, the one seen last at the end
    this.busy = new Map(); // row -> AbortController
    this.queue = [];
    this.drawn = []; // [row, left, top, width, height], as painted last
    this.side = SMALLEST;
    this.shade = 0; // 0: points, 1: pictures
  }

  /** Fetch these rows' pictures, the first ones first, and no other ones. */
  want(rows) {
    const wanted = new Set(rows);
    for (const [row, stop] of this.busy) if (!wanted.has(row)) stop.abort();
    this.queue = rows.filter((row) => !this.known.has(row) && !this.busy.has(row));
    this.next();
  }

  next() {
    while (this.busy.size < AT_ONCE && this.queue.length) this.fetch(this.queue.shift());
  }

  async fetch(row) {
    const { address } = this;
    const stop = new AbortController();
    this.busy.set(row, stop);
    let picture = null;
    try {
      const answer = await fetch(`${address}/${row}`, { signal: stop.signal });
      const there = answer.ok && !answer.headers.get("Cache-Control")?.includes("no-store");
      if (there) picture = await createImageBitmap(await answer.blob());
    } catch {} // the server is away, or it is no picture: the point stays a point
    if (address !== this.address) return picture?.close();
    this.busy.delete(row);
    if (!stop.signal.aborted) this.keep(row, picture);
    this.next();
  }

  keep(row, picture) {
    this.known.set(row, { picture, since: performance.now() });
    for (const [old, { picture: gone }] of this.known) {
      if (this.known.size <= KEPT) break;
      gone?.close();
      this.known.delete(old);
    }
    this.changed();
  }

  /** Paint the pictures of `rows` around their places (`at(row)`, in pixels), with a border of
   *  `color(row)`, where they do not cover one another: those of the lowest `rank(row)` first, which
   *  is below 0 for those that matter. Returns the rows that have room. */
  paint(pen, rows, { at, color, rank, size, now }) {
    this.grow(rows.length, size);
    this.fade(rows.length > 0, now);
    const before = new Set(this.drawn.map(([row]) => row));
    const first = (row) => (rank(row) < 0 || !before.has(row) ? rank(row) : -0.5); // what is there stays
    const placed = apart([...rows].sort((a, b) => first(a) - first(b)), at, this.side);
    this.drawn = [];
    for (const row of placed) {
      const entry = this.known.get(row);
      if (!entry?.picture) continue;
      this.known.delete(row); // and last in line to be forgotten
      this.known.set(row, entry);
      this.one(pen, row, entry, at(row), color(row), now);
    }
    pen.globalAlpha = 1;
    if (this.moving) this.changed();
    return placed;
  }

  one(pen, row, { picture, since }, [x, y], color, now) {
    const scale = this.side / Math.max(picture.width, picture.height);
    const [width, height] = [picture.width * scale, picture.height * scale];
    const [left, top] = [x - width / 2, y - height / 2];
    const alpha = Math.min(1, (now - since) / FADE);
    if (alpha < 1) this.moving = true;
    pen.save();
    pen.globalAlpha = alpha * this.shade;
    pen.beginPath();
    pen.roundRect(left, top, width, height, 5);
    pen.clip();
    pen.drawImage(picture, left, top, width, height);
    pen.lineWidth = 4; // the inner half of it is seen
    pen.strokeStyle = color;
    pen.stroke();
    pen.restore();
    this.drawn.push([row, left, top, width, height]);
  }

  /** Larger where there are fewer, a little with every frame. */
  grow(count, [width, height]) {
    const goal = count ? Math.min(LARGEST, Math.max(SMALLEST, 0.5 * Math.sqrt((width * height) / count))) : this.side;
    this.side += 0.2 * (goal - this.side);
    this.moving = Math.abs(goal - this.side) > 0.5;
  }

  fade(there, now) {
    const passed = Math.min(50, now - (this.painted ?? now)) / FADE;
    this.painted = now;
    this.shade = there ? Math.min(1, Math.max(this.shade, 0.01) + passed) : 0;
    if (there && this.shade < 1) this.moving = true;
  }

  /** Where a row's picture is, [left, top, width, height]; undefined where it has none. */
  frame(row) {
    return this.drawn.find(([other]) => other === row)?.slice(1);
  }

  /** The row of the picture at a pixel, or -1. */
  hit(px, py) {
    const found = this.drawn.findLast(([, left, top, width, height]) => px >= left && px <= left + width && py >= top && py <= top + height);
    return found ? found[0] : -1;
  }
}

/** The rows whose squares of `side` pixels leave enough of one another to be seen, in this order. */
function apart(rows, at, side) {
  const places = [];
  return rows.filter((row) => {
    const [x, y] = at(row);
    const covers = ([a, b]) => Math.max(0, side - Math.abs(x - a)) * Math.max(0, side - Math.abs(y - b));
    if (places.some((place) => covers(place) > OVERLAP * side * side)) return false;
    places.push([x, y]);
    return true;
  });
}
