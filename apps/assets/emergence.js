/* emergence.js: a run's quality checks behind one slider. Heads, patch colors, nearest neighbors and the
 * map of the held-out images change together; Play moves through them.
 *
 * All that changes is fetched once; no frame asks the server. Where everything came to rest is told, as
 * ("place", {check, picture, layer, head, query, stamp}).
 *
 * Props: {at: address of the run's routes, steps: of the checks, total: of the run, curves: [{title,
 * values, unit, digits}], pictures: numbers, layers, heads, hasColors, hasTiles, about: URL of {ids,
 * labels, classes, light, dark}, neighbors: {rows, cosines: URLs, k} or null, maps: [{name, steps,
 * points: URL}], state: {check, picture, layer, head, query, stamp}}.
 */

import { format, icon, make } from "./dom.js";
import { Drift } from "./drift.js";
import { bytesOf, Sight } from "./sight.js";
import { Timeline, valueAt } from "./timeline.js";

const PACE = 620; // milliseconds from one check to the next, while it plays
const GLIDE = 260; // milliseconds to the check that was chosen
const REST = 500; // milliseconds after which a place counts as chosen
const TILE = 84; // CSS pixels of a neighbor's tile, with its gap
const PLAY = "M7 4.500v15l13-7.500z";
const PAUSE = "M7 5h3.500v14H7zM13.500 5H17v14h-3.500z";
const SHUFFLE = "M16 3h5v5M4 20 21 3M21 16v5h-5M15 15l6 6M4 4l5 5";

class Emergence {
  constructor(root, trigger) {
    this.trigger = trigger;
    this.state = { check: 0, picture: 0, layer: 0, head: -1, query: 0 };
    [this.stamp, this.at, this.props] = [-1, 0, {}];
    this.fetched = new Map();
    this.build(root);
  }

  /* ---- the page elements */

  build(root) {
    this.timeline = new Timeline({
      change: (at, exactly) => (exactly ? this.jump(at) : this.glide(at)),
      rest: () => this.tell(),
    });
    this.sight = new Sight({ chooseHead: (head) => this.set({ head }) });
    this.drift = new Drift({ choose: (query) => this.set({ query }) });
    this.button = make("button", "play", { type: "button", "aria-label": "Play", title: "Play (space)" }, icon(PLAY));
    this.button.addEventListener("click", () => this.toggle());
    this.step = make("strong", "step");
    this.which = make("span", "which");
    this.values = make("dl", "values");
    const time = make("section", "card time", { "aria-label": "Checks" }, this.button,
      make("div", "now", { "aria-live": "polite" }, this.step, this.which), this.timeline.element, this.values);

    this.pictures = make("div", "pictures", { role: "radiogroup", "aria-label": "Pictures" });
    this.layer = make("input", "", { type: "range", min: "1", step: "1", "aria-label": "Layer" });
    this.layer.addEventListener("input", () => this.set({ layer: Number(this.layer.value) - 1 }));
    this.layerTold = make("output", "");
    this.layers = make("label", "layer", {}, make("span", "", {}, "Layer"), this.layer, this.layerTold);
    const seen = make("section", "card seen", { "aria-label": "What is seen in a picture" },
      make("header", "", {}, make("h3", "", {}, "Heads and colors"), this.pictures), this.sight.element, this.layers);

    this.mapNames = make("div", "names", { role: "radiogroup", "aria-label": "Map" });
    this.lost = make("p", "note");
    const space = make("section", "card space", { "aria-label": "Map" },
      make("header", "", {}, make("h3", "", {}, "Map of the held-out images"), this.mapNames), this.drift.element);

    this.query = make("figure", "query", {}, make("img", "", { alt: "" }), make("figcaption", ""));
    this.sharing = make("p", "sharing");
    this.grid = make("div", "near");
    const another = make("button", "another", { type: "button", title: "Another image" }, icon(SHUFFLE), "Another");
    another.addEventListener("click", () => this.set({ query: Math.floor(Math.random() * this.about.ids.length) }));
    const close = make("section", "card close", { "aria-label": "Nearest neighbors" },
      make("header", "", {}, make("h3", "", {}, "Nearest neighbors"), another), this.query, this.sharing, this.grid);

    this.problem = make("p", "problem", { role: "status", hidden: "" });
    this.frame = make("div", "emergence", { "data-ready": "false" }, time, this.problem, make("div", "views", {}, seen, space, close));
    this.frame.addEventListener("keydown", (event) => {
      if (event.key !== " " || event.target.closest("button, input")) return;
      event.preventDefault();
      this.toggle();
    });
    this.frame.addEventListener("transitionend", (event) => event.target === this.frame && this.retheme());
    this.gridSized = new ResizeObserver(() => this.near());
    this.gridSized.observe(this.grid);
    root.append(this.frame);
  }

  /* ---- props in */

  /** Show `props`; updates that arrive while another is loading wait for it. */
  update(props) {
    this.updating = (this.updating ?? Promise.resolve()).then(() => this.apply(props));
    return this.updating;
  }

  async apply(props) {
    const before = this.props;
    this.props = props;
    if (props.at !== before.at) this.describeRun(before);
    if (props.state.stamp > this.stamp) this.adopt(props.state);
    this.paint();
    [this.sight.at, this.sight.head] = [this.at, this.state.head];
    const parts = [this.takeImages(props, before), this.chooseMap(), this.showPicture()];
    try {
      await Promise.all(parts.map((part) => part.then(() => this.paint()))); // each as soon as it is there
    } catch (error) {
      console.error(error);
      this.props = { ...props, about: null, neighbors: null, at: null }; // so that the next update tries again
      return this.say(`This run could not be shown (${error.message}). Reload the page to try again.`);
    }
    this.say("");
    this.frame.dataset.ready = "true";
  }

  showPicture() {
    return this.sight.show(this.props, this.state.picture, this.state.layer);
  }

  /** What the held-out images are, and whose neighbors they are. */
  async takeImages(props, before) {
    if (props.about !== before.about || props.hasTiles !== before.hasTiles) {
      const about = JSON.parse(new TextDecoder().decode(await this.fetchOnce(props.about)));
      this.found = null; // of other images
      [this.about, this.thumbs, this.tiles] = [about, `${props.at}/image`, new Map()]; // tiles: row -> element
      this.grid.replaceChildren();
      this.drift.describe(about, this.thumbs, this.isDark());
      this.paint();
    }
    const { neighbors } = props;
    if (!neighbors || (this.found && neighbors.rows === before.neighbors?.rows)) return;
    const [rows, cosines] = await Promise.all([this.fetchOnce(neighbors.rows), this.fetchOnce(neighbors.cosines)]);
    this.found = { rows: new Uint16Array(rows), cosines: new Int8Array(cosines), k: neighbors.k };
  }

  async fetchOnce(url) {
    if (!this.fetched.has(url)) this.fetched.set(url, await bytesOf(url));
    return this.fetched.get(url);
  }

  describeRun(before) {
    const { steps, curves, pictures, layers, at } = this.props;
    this.timeline.show(steps, curves);
    this.button.disabled = steps.length < 2;
    this.values.replaceChildren(...curves.map(({ title }, number) =>
      make("div", "", { style: `--color: var(--curve-${number + 1})` }, make("dt", "", {}, title), make("dd", ""))));
    this.layer.max = layers;
    this.layers.hidden = layers < 2;
    this.pictures.replaceChildren(...pictures.map((number) => {
      const button = make("button", "", { type: "button", role: "radio", "aria-label": `Picture ${number + 1}`, "data-picture": number },
        make("img", "", { src: `${at}/picture/${number}`, alt: "" }));
      button.addEventListener("click", () => this.set({ picture: number }));
      return button;
    }));
    this.pictures.hidden = pictures.length < 2;
    if (before.steps && steps.length > before.steps.length && this.at === before.steps.length - 1) this.state.check = steps.length - 1;
    this.at = Math.min(this.at, steps.length - 1); // a run that goes on has one more check
  }

  /** Be where the address says. */
  adopt({ stamp, ...state }) {
    this.pause();
    this.stamp = stamp;
    clearTimeout(this.waiting);
    const first = this.frame.dataset.ready !== "true";
    this.state = state;
    if (first) this.at = state.check;
    else this.glide(state.check);
  }

  /** The best map that is there, or the one that was chosen. */
  async chooseMap(name = this.mapName) {
    const { maps, steps } = this.props;
    this.mapNames.replaceChildren(...(maps.length > 1 ? maps : []).map((map) => {
      const button = make("button", "", { type: "button", role: "radio" }, map.name);
      button.addEventListener("click", async () => {
        this.mapName = map.name;
        await this.chooseMap();
        this.paint();
      });
      return button;
    }));
    const map = maps.find((one) => one.name === name) ?? maps.at(-1);
    for (const button of this.mapNames.children) button.setAttribute("aria-checked", button.textContent === map.name);
    if (!map) return this.drift.map(null);
    const points = new Float32Array(await this.fetchOnce(map.points));
    this.drift.map(points, map.steps.map((step) => steps.indexOf(step)));
  }

  say(text) {
    this.problem.textContent = text;
    this.problem.hidden = !text;
  }

  isDark() {
    return getComputedStyle(this.frame).colorScheme.includes("dark") || matchMedia("(prefers-color-scheme: dark)").matches && !getComputedStyle(this.frame).colorScheme.includes("light");
  }

  retheme() {
    this.drift.theme(this.isDark());
    this.paint();
  }

  /* ---- moving */

  /** Another picture, layer, head or query. */
  async set(part) {
    Object.assign(this.state, part);
    this.tell();
    this.mark();
    if ("picture" in part || "layer" in part) {
      try {
        await this.showPicture();
      } catch (error) {
        this.say(`This picture could not be loaded (${error.message}).`);
      }
    }
    this.paint();
  }

  jump(at) {
    this.pause();
    this.at = at;
    this.paint();
  }

  /** Go to a check, gently. */
  glide(check) {
    this.pause();
    const from = this.at;
    if (from === check) return this.paint();
    const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
    this.run(still ? 0 : GLIDE, (share) => from + (check - from) * (1 - (1 - share) ** 3));
  }

  toggle() {
    if (this.playing) {
      this.glide(Math.round(this.at));
      return this.tell();
    }
    const last = this.props.steps.length - 1;
    const from = this.at >= last ? 0 : this.at;
    this.run((last - from) * PACE, (share) => from + share * (last - from), () => this.tell());
    this.playing = true;
    this.showPlaying();
  }

  run(duration, place, then) {
    cancelAnimationFrame(this.frameAsked);
    const start = performance.now();
    const next = (now) => {
      const share = duration > 0 ? Math.min(Math.max((now - start) / duration, 0), 1) : 1;
      this.at = place(share);
      this.paint();
      if (share < 1) this.frameAsked = requestAnimationFrame(next);
      else {
        this.pause();
        then?.();
      }
    };
    this.frameAsked = requestAnimationFrame(next);
  }

  pause() {
    cancelAnimationFrame(this.frameAsked);
    this.playing = false;
    this.showPlaying();
  }

  showPlaying() {
    const name = this.playing ? "Pause" : "Play";
    if (this.button.getAttribute("aria-label") === name && this.drawnOnce) return;
    this.drawnOnce = true;
    this.button.setAttribute("aria-label", name);
    this.button.title = `${name} (space)`;
    this.button.replaceChildren(icon(this.playing ? PAUSE : PLAY));
  }

  /** Tell, in a moment, where everything is. */
  tell() {
    clearTimeout(this.waiting);
    this.waiting = setTimeout(() => {
      this.stamp = Math.max(Date.now(), this.stamp + 1);
      this.trigger("place", { ...this.state, check: Math.round(this.at), stamp: this.stamp });
    }, REST);
  }

  /* ---- drawing */

  paint() {
    const { steps, curves, layers } = this.props;
    if (!steps) return;
    const check = Math.round(this.at);
    this.state.check = check;
    const step = Math.round(valueAt(steps, this.at));
    this.step.textContent = `Step ${format(step)}`;
    this.which.textContent = `check ${check + 1} of ${steps.length}`;
    curves.forEach(({ values, unit, digits }, number) => {
      const value = valueAt(values, this.at);
      this.values.children[number].lastChild.textContent = value == null ? "–" : value.toFixed(digits) + unit;
    });
    this.timeline.set(this.at);
    this.sight.paint(this.at, this.state.head);
    this.layer.value = this.state.layer + 1;
    this.layerTold.textContent = `${this.state.layer + 1} of ${layers}`;
    this.mark();
    this.near();
    this.drift.show(this.at, this.state.query, this.rowsAt(check).map(([row]) => row));
    this.frame.dataset.at = this.at.toFixed(2);
  }

  mark() {
    for (const button of this.pictures.children) button.setAttribute("aria-checked", Number(button.dataset.picture) === this.state.picture);
  }

  /** The query's neighbors at a check: [row, cosine in hundredths]. */
  rowsAt(check) {
    if (!this.found || !this.about) return [];
    const { rows, cosines, k } = this.found;
    const start = (check * this.about.ids.length + this.state.query) * k;
    return Array.from({ length: k }, (_, i) => [rows[start + i], cosines[start + i]]);
  }

  /** The neighbors as tiles: those that stay move to their place, others come and go. */
  near() {
    if (!this.about) return;
    const { query } = this.state;
    const [label, rows] = [this.about.labels[query], this.rowsAt(Math.round(this.at))];
    this.describeQuery(query, label, rows);
    const width = this.grid.clientWidth;
    const columns = Math.max(3, Math.round(width / TILE));
    const side = (width + 8) / columns;
    this.grid.style.setProperty("--side", `${side - 8}px`);
    this.grid.style.height = `${Math.ceil(rows.length / columns) * side}px`;
    const staying = new Set(rows.map(([row]) => row));
    for (const [row, tile] of this.tiles) if (!staying.has(row)) this.dismiss(row, tile);
    rows.forEach(([row, cosine], place) => {
      const tile = this.tiles.get(row) ?? this.welcome(row);
      tile.style.transform = `translate(${(place % columns) * side}px, ${Math.floor(place / columns) * side}px)`;
      tile.dataset.same = label < 0 ? "unknown" : this.about.labels[row] === label;
      tile.lastChild.textContent = (cosine / 100).toFixed(2);
      tile.style.order = place;
    });
  }

  describeQuery(query, label, rows) {
    const [image, caption] = this.query.children;
    const src = `${this.thumbs}/${query}?${this.props.hasTiles ? "" : "soon"}`;
    if (image.getAttribute("src") !== src) {
      image.src = src;
      const name = this.about.ids[query].split("/").at(-1);
      caption.replaceChildren(make("b", "", {}, this.about.classes[label] ?? name), make("span", "", {}, label < 0 ? "no label" : name));
    }
    if (!this.found) this.sharing.textContent = "The images are being compared …";
    else if (label < 0) this.sharing.textContent = `Its ${rows.length} nearest at this check`;
    else {
      const same = rows.filter(([row]) => this.about.labels[row] === label).length;
      this.sharing.replaceChildren(make("b", "", {}, `${same} of ${rows.length}`), " nearest share its label");
    }
  }

  welcome(row) {
    const label = this.about.labels[row];
    const name = this.about.classes[label] ?? this.about.ids[row].split("/").at(-1);
    const tile = make("button", "tile", { type: "button", title: `${name}: look from here` },
      make("img", "", { src: `${this.thumbs}/${row}?${this.props.hasTiles ? "" : "soon"}`, alt: name, loading: "lazy" }), make("span", ""));
    tile.addEventListener("click", () => this.set({ query: row }));
    this.tiles.set(row, tile);
    this.grid.append(tile);
    return tile;
  }

  dismiss(row, tile) {
    this.tiles.delete(row);
    tile.classList.add("leaving");
    tile.inert = true;
    setTimeout(() => tile.remove(), 240);
  }

  destroy() {
    cancelAnimationFrame(this.frameAsked);
    clearTimeout(this.waiting);
    this.gridSized.disconnect();
    this.timeline.destroy();
    this.drift.destroy();
    this.frame.remove();
  }
}

/** Mount a run's history into `root`; `trigger("place", …)` hears where it came to rest. */
export function mount(root, trigger) {
  return new Emergence(root, trigger);
}
