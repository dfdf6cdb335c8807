// The tab Pairs: two pictures, one model. What is a patch of one like in the other?
// Wants overlay.js, pieces.js and second.js.

const PAIRS_NEAR = 1.5; // patches from a dot at which the pointer means its pair

(globalThis.lensTabs ??= []).push({id: "pairs", title: "Pairs", mount(home, desk) {
  const state = {look: "patch", side: 0, patch: null, count: 40, lines: true, opacity: 0.65, colors: "inferno",
    smooth: true};
  const scratch = document.createElement("canvas");
  let pairs = [], found = 0; // mutual neighbors: [row, column, row, column, cosine], and how many there are
  let known = new Map(); // what the server told of patches of these two pictures
  let shown = null; // the key of the one that is drawn: the last that was told
  let wanted = null, asking = false, frame = 0, hot = -1;
  let asked = 0, coming = 0, scene = 0; // loads begun, those under way, pictures the page has had
  let board = null; // {scene, second} of what is drawn

  // the two pictures
  const sides = ["left", "right"].map((name, side) => {
    const canvas = lensNode("canvas", {role: "img"});
    const reading = lensNode("div", {class: "lens-reading", "aria-hidden": "true"});
    const stage = lensNode("div", {class: "lens-stage", tabindex: "0", role: "group",
      "aria-label": `The ${name} picture. Arrow keys choose a patch, whose like is shown in both pictures.`,
      onpointermove: (event) => read(side, event),
      onpointerleave: () => { reading.textContent = ""; warm(-1); },
      onclick: (event) => { const patch = patchAt(side, event); if (patch) point(side, patch); },
      onkeydown: (event) => step(side, event)}, canvas, reading);
    const [title, told] = [lensNode("strong"), lensNode("span")];
    const figure = lensNode("figure", {class: "lens-figure"}, stage,
      lensNode("figcaption", {class: "lens-caption"}, title, told));
    return {name, canvas, reading, stage, title, told, figure, photo: null, grid: null, of: ""};
  });
  const links = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  links.setAttribute("class", "pairs-links");
  links.setAttribute("aria-hidden", "true");
  const place = lensNode("div", {class: "pairs-board"}, ...sides.map((side) => side.figure), links);

  // the panel
  const change = (part) => { Object.assign(state, part); refresh(); };
  const look = lensSegments("Show", [["patch", "One patch"], ["mutual", "Mutual nearest neighbors"]], state.look,
    (value) => change({look: value}));
  const count = lensSlider("pairs", {min: 1, max: 200, step: 1, value: state.count,
    text: (value) => `${Math.min(value, pairs.length)} of ${found.toLocaleString("en")}`,
    change: (value) => change({count: value})});
  const opacity = lensSlider("opacity", {min: 0, max: 100, step: 1, value: 100 * state.opacity,
    text: (value) => `${value} %`, change: (value) => change({opacity: value / 100})});
  const names = Object.keys(LENS_COLORS).map((key) => [key, key[0].toUpperCase() + key.slice(1)]);
  const colors = lensSelect("Color map", names, state.colors, (value) => change({colors: value}));
  const smooth = lensCheck("Smooth", state.smooth, (value) => change({smooth: value}));
  const lines = lensCheck("Lines", state.lines, (value) => change({lines: value}));
  const [least, most] = [lensNode("span"), lensNode("span")];
  const ramp = lensNode("canvas", {width: 256, height: 1, "aria-hidden": "true"});
  const scale = lensNode("div", {class: "lens-row"}, lensNode("span", {class: "lens-legend"}, "Cosine, both pictures"),
    lensNode("div", {class: "lens-scale"}, least, ramp, most));
  const note = lensNode("p", {class: "lens-note"});
  const panel = lensNode("div", {class: "lens-panel"}, look, lensNode("div", {class: "pairs-controls"},
    count.row, opacity.row, colors.row, scale, lensNode("div", {class: "lens-checks"}, smooth, lines)), note);
  const spoken = lensNode("div", {class: "lens-quiet", role: "status", "aria-live": "polite"});

  const second = secondPicture(desk, {change: (named) => load(named)});
  second.takeDrops(sides[1].figure);
  const root = lensNode("div", {class: "lens pairs"}, second.element, place, panel, spoken);
  home.replaceChildren(root);
  new ResizeObserver(() => link()).observe(place);

  // -- what is shown -------------------------------------------------------------------------

  /** Put the page's picture and the second one on the board. Rejects, and leaves what was there. */
  async function load(named) {
    const number = (asked += 1), of = scene, {image, title} = desk.picture();
    coming += 1;
    root.classList.add("pairs-waiting");
    try {
      const [photo, answer] = await Promise.all([pictureAt(image), desk.ask("pair", {second: named})]);
      const other = await pictureAt(answer.image);
      if (number !== asked) return;
      [photo, other].forEach((picture, side) => {
        Object.assign(sides[side], {photo: picture, grid: answer.grids[side], of: [title, answer.title][side]});
        fitCanvas(sides[side].canvas, picture);
      });
      [pairs, found, known, shown, wanted] = [answer.pairs, answer.count, new Map(), null, null];
      board = {scene: of, second: named};
      count.input.max = Math.max(pairs.length, 1);
      count.set(Math.min(state.count, pairs.length));
    } finally {
      coming -= 1;
      if (!coming) root.classList.remove("pairs-waiting");
    }
    if (coming) return; // another is on its way
    const keep = state.patch && state.side === 0 && within(0, state.patch);
    point(0, keep ? state.patch : middle(0), state.look);
  }

  const middle = (side) => ({row: sides[side].grid[0] >> 1, column: sides[side].grid[1] >> 1});
  const within = (side, {row, column}) => row < sides[side].grid[0] && column < sides[side].grid[1];
  const keyOf = (side, {row, column}) => `${side},${row},${column}`;

  /** Choose a patch. Only the newest wish is asked for while an answer is on its way. */
  async function point(side, patch, look = "patch") {
    if (coming) return;
    if (board?.scene !== scene) return again(); // the last try failed
    Object.assign(state, {side, patch, look});
    wanted = keyOf(side, patch);
    refresh();
    if (asking) return;
    asking = true;
    const of = known;
    while (known === of && wanted && !of.has(wanted)) {
      const key = wanted, [from, row, column] = key.split(",").map(Number);
      try {
        const {maps, best} = await desk.ask("alike", {second: board.second, side: from, row, column});
        of.set(key, {side: from, row, column, best, ...onOneScale(maps.map(readCosines), from, row, column)});
        if (known === of) shown = key;
      } catch { // the status line says why
        if (known === of && wanted === key) giveUp();
      }
      refresh();
    }
    asking = false;
    if (known !== of && wanted && !known.has(wanted)) return point(state.side, state.patch, state.look);
    if (known.has(wanted)) shown = wanted;
    refresh();
  }

  /** Back to the patch that is drawn. */
  function giveUp() {
    wanted = null;
    if (!shown) return;
    const {side, row, column} = known.get(shown);
    Object.assign(state, {side, patch: {row, column}});
  }

  const again = () => { if (second.named()) load(second.named()).catch(() => {}); };

  /** Both maps from the least to the greatest cosine of both; the patch itself, always 1, is left out. */
  function onOneScale(maps, side, row, column) {
    const itself = row * sides[side].grid[1] + column;
    let [low, high] = [Infinity, -Infinity];
    maps.forEach(({values}, at) => values.forEach((value, i) => {
      if (at === side && i === itself) return;
      low = Math.min(low, value);
      high = Math.max(high, value);
    }));
    const span = high > low ? high - low : 1;
    const shades = maps.map(({values}) => values.map((value) => Math.min(Math.max((value - low) / span, 0), 1)));
    return {low, high, shades, cosines: maps.map(({values}) => values)};
  }

  const chosenPairs = () => (state.look === "mutual" ? pairs.slice(0, state.count) : []);
  const told = () => (state.look === "patch" ? known.get(shown) : null);

  // -- pointer and keys ----------------------------------------------------------------------

  /** The patch under the pointer, or null: shares of the drawing's box hold at any zoom. */
  function patchAt(side, {clientX, clientY}) {
    const {canvas, grid} = sides[side];
    if (!grid) return null;
    const box = canvas.getBoundingClientRect();
    const row = Math.floor(((clientY - box.top) / box.height) * grid[0]);
    const column = Math.floor(((clientX - box.left) / box.width) * grid[1]);
    return row < 0 || column < 0 || !within(side, {row, column}) ? null : {row, column};
  }

  function read(side, event) {
    const patch = patchAt(side, event), {reading, grid} = sides[side];
    warm(patch && state.look === "mutual" ? nearestDot(side, patch) : -1);
    if (!patch) { reading.textContent = ""; return; }
    const value = told()?.cosines[side][patch.row * grid[1] + patch.column] ?? pairs[hot]?.[4];
    reading.textContent = `patch ${patch.column + 1}, ${patch.row + 1}` +
      (value === undefined ? "" : ` · cosine ${value.toFixed(3)}`);
  }

  function nearestDot(side, {row, column}) {
    let best = -1, least = PAIRS_NEAR;
    chosenPairs().forEach((pair, i) => {
      const distance = Math.hypot(pair[2 * side] - row, pair[2 * side + 1] - column);
      if (distance < least) [best, least] = [i, distance];
    });
    return best;
  }

  function warm(pair) {
    if (pair === hot) return;
    hot = pair;
    link();
  }

  function step(side, event) {
    const [x, y] = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1]}[event.key] ?? [];
    if (x === undefined || !board || event.altKey || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    const [rows, columns] = sides[side].grid;
    const from = state.side === side ? state.patch : known.get(shown)?.best ?? middle(side);
    const inside = (value, length) => Math.min(Math.max(value, 0), length - 1);
    point(side, {row: inside(from.row + y, rows), column: inside(from.column + x, columns)});
  }

  // -- drawing -------------------------------------------------------------------------------

  function refresh() {
    if (!frame) frame = requestAnimationFrame(paint);
  }

  function paint() {
    frame = 0;
    if (!sides[1].photo) return;
    sides.forEach(paintSide);
    describe();
    link();
  }

  function paintSide({canvas, photo, grid: [h, w]}, side) {
    const context = canvas.getContext("2d"), {width, height} = canvas, one = told();
    context.drawImage(photo, 0, 0, width, height);
    if (state.look === "mutual") { // a veil, so that the dots stand out
      desaturate(context, width, height, state.opacity);
      context.fillStyle = `rgb(6 9 20 / ${60 * state.opacity}%)`;
      context.fillRect(0, 0, width, height);
      return;
    }
    if (one) {
      const factor = state.smooth ? Math.max(1, Math.ceil(LENS_FIELD / Math.max(h, w))) : 1;
      const field = factor > 1 ? upsample(one.shades[side], h, w, factor) : {values: one.shades[side], H: h, W: w};
      desaturate(context, width, height, state.opacity);
      paintField(scratch, field.values, field.W, field.H, colorTable(state.colors), {alpha: alphaTable(state.opacity)});
      context.imageSmoothingEnabled = state.smooth;
      context.drawImage(scratch, 0, 0, width, height);
      if (side !== one.side) paintPatch(context, one.best, {h, w}, true);
      else if (wanted !== shown) paintPatch(context, one, {h, w}, false);
    }
    if (state.side === side && state.patch) paintPatch(context, state.patch, {h, w}, true);
  }

  /** Where a patch's center lies, in pixels of the board. */
  function center(side, row, column) {
    const frame = place.getBoundingClientRect(), {canvas, grid: [h, w]} = sides[side];
    const box = canvas.getBoundingClientRect(), [x, y] = [(column + 0.5) / w, (row + 0.5) / h];
    return [box.left - frame.left + x * box.width, box.top - frame.top + y * box.height];
  }

  function shape(name, attributes) {
    const made = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    return made;
  }

  const line = ([x1, y1], [x2, y2], more) => shape("line", {x1, y1, x2, y2, ...more});
  const dot = ([cx, cy], r, more) => shape("circle", {cx, cy, r, ...more});

  /** The lines and dots over both pictures. */
  function link() {
    if (!sides[1].photo) return;
    const one = told(), made = [], {width: across, height: down} = place.getBoundingClientRect();
    links.setAttribute("viewBox", `0 0 ${across} ${down}`); // holds in a page that is zoomed, too
    if (one) {
      const here = center(one.side, one.row, one.column), there = center(1 - one.side, one.best.row, one.best.column);
      made.push(line(here, there, {class: "under"}), line(here, there, {class: "over"}));
    }
    const chosen = chosenPairs();
    const {width} = sides[0].canvas.getBoundingClientRect();
    const radius = Math.min(Math.max((0.34 * width) / sides[0].grid[1], 3), 7);
    const order = [...chosen.keys()].reverse(); // the best in front, and before them all the hot one
    if (hot >= 0 && hot < chosen.length) order.push(...order.splice(order.indexOf(hot), 1));
    for (const i of order) {
      const [row, column, otherRow, otherColumn] = chosen[i];
      const ends = [center(0, row, column), center(1, otherRow, otherColumn)];
      const warmth = hot < 0 ? "" : i === hot ? " hot" : " cold";
      const color = `rgb(${headColor(i).join()})`;
      if (state.lines || i === hot) made.push(line(...ends, {class: `pair${warmth}`, stroke: color}));
      made.push(...ends.map((end) => dot(end, i === hot ? radius + 2 : radius, {class: `pair${warmth}`, fill: color})));
    }
    links.replaceChildren(...made);
  }

  function describe() {
    const mutual = state.look === "mutual", [left, right] = sides, one = told();
    look.set(state.look);
    for (const [row, there] of [[count.row, mutual], [lines, mutual], [colors.row, !mutual], [scale, !mutual],
      [smooth, !mutual]]) row.hidden = !there;
    sides.forEach((side) => { side.title.textContent = side.title.title = side.of; side.told.textContent = ""; });
    let all = "";
    if (mutual) {
      const there = chosenPairs();
      left.told.textContent = `${there.length} of ${found.toLocaleString("en")} mutual pairs`;
      if (there.length) right.told.textContent = `cosine ${there[there.length - 1][4].toFixed(3)} or more`;
      note.textContent = "Patches that choose each other: each is the other's nearest. The best pairs come first.";
      all = `${left.told.textContent}, ${right.told.textContent}`;
    } else if (one) {
      const {row, column, best} = one;
      sides[one.side].told.textContent = `patch ${column + 1}, ${row + 1}`;
      sides[1 - one.side].told.textContent =
        `best match: patch ${best.column + 1}, ${best.row + 1} · cosine ${best.cosine.toFixed(3)}`;
      least.textContent = one.low.toFixed(3);
      most.textContent = one.high.toFixed(3);
      paintField(ramp, Float32Array.from({length: 256}, (_, i) => i / 255), 256, 1, colorTable(state.colors));
      note.textContent = "Click a patch of either picture: how alike its feature is to every patch of both.";
      all = `Patch ${column + 1}, ${row + 1} of the ${sides[one.side].name} picture. In the other, ` +
        `${sides[1 - one.side].told.textContent}`;
    }
    if (spoken.textContent !== all) spoken.textContent = all;
    for (const {canvas, of, name} of sides) canvas.setAttribute("aria-label", `${of}, the ${name} picture. ${all}.`);
  }

  const start = second.first();
  if (start) second.choose(start.named, start.title);
  return {show() { scene += 1; again(); }, failed: () => !coming && board?.scene !== scene};
}});
