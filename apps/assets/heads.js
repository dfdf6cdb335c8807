/* heads.js: the matrix of a model's heads, one row a layer, colored by a statistic; a click on one
 * is told, and so are the arrow keys.
 *
 * Props: {values: [layer][head] numbers, or null for not known, low, high: the ends of the colors,
 * digits, name, unit, even: what a head without preference has, or null, layer, head: the chosen one}.
 */

import { make } from "./dom.js";

const STEPS = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };

class Heads {
  constructor(root, trigger) {
    this.trigger = trigger;
    this.grid = make("div", "matrix", { role: "grid", "aria-label": "Heads" });
    this.grid.addEventListener("keydown", (event) => this.walk(event));
    this.scale = make("div", "scale");
    this.frame = make("div", "heads", {}, this.grid, this.scale);
    root.append(this.frame);
  }

  update(props) {
    const focused = this.cells?.flat().some((cell) => cell.matches(":focus"));
    this.props = props;
    const { values, layer, head } = props;
    this.cells = values.map((row, at) => row.map((value, column) => this.cell(value, at, column)));
    const names = values[0].map((_, column) => make("span", "name", { role: "columnheader" }, column + 1));
    const corner = make("span", "corner", {}, "layer", make("i", "", {}, "head"));
    const rows = this.cells.map((cells, at) => make("div", "row", { role: "row" }, make("span", "name", { role: "rowheader" }, at + 1), ...cells));
    this.grid.style.setProperty("--heads", names.length);
    this.grid.dataset.many = names.length > 8 ? "yes" : "no";
    this.grid.replaceChildren(make("div", "row", { role: "row" }, corner, ...names), ...rows);
    this.drawScale();
    if (focused) this.cells[layer][head].focus({ preventScroll: true });
  }

  cell(value, layer, head) {
    const { low, high, name, unit } = this.props;
    const chosen = layer === this.props.layer && head === this.props.head;
    const said = value == null ? "not known" : `${this.told(value)}${unit}`;
    const cell = make("button", "cell", {
      type: "button", role: "gridcell", tabindex: chosen ? "0" : "-1", "aria-selected": chosen,
      title: `Layer ${layer + 1}, head ${head + 1}: ${name.toLowerCase()} ${said}`,
    }, make("span", "", {}, value == null ? "–" : this.told(value)));
    cell.setAttribute("aria-label", cell.title);
    const share = value == null ? 0 : (value - low) / (high - low || 1);
    cell.style.setProperty("--share", share.toFixed(3));
    if (share > 0.55) cell.classList.add("strong");
    cell.addEventListener("click", () => this.choose(layer, head));
    return cell;
  }

  told(value) {
    return value.toFixed(this.props.digits);
  }

  drawScale() {
    const { low, high, unit, even } = this.props;
    const bar = make("i", "bar");
    const parts = [make("span", "", {}, `${this.told(low)}${unit}`), bar, make("span", "", {}, `${this.told(high)}${unit}`)];
    if (even != null) parts.push(make("span", "even", {}, `without any preference: ${this.told(even)}${unit}`));
    this.scale.replaceChildren(...parts);
  }

  walk(event) {
    const step = STEPS[event.key];
    if (!step || event.altKey || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    const [layers, heads] = [this.cells.length, this.cells[0].length];
    const within = (value, most) => Math.min(Math.max(value, 0), most - 1);
    const layer = within(this.props.layer + step[0], layers);
    const head = within(this.props.head + step[1], heads);
    this.choose(layer, head);
  }

  /** Shown at once; the page follows. */
  choose(layer, head) {
    if (layer === this.props.layer && head === this.props.head) return;
    this.props = { ...this.props, layer, head };
    this.cells.forEach((row, at) => row.forEach((cell, column) => {
      const chosen = at === layer && column === head;
      cell.setAttribute("aria-selected", chosen);
      cell.tabIndex = chosen ? 0 : -1;
      if (chosen) cell.focus({ preventScroll: true });
    }));
    clearTimeout(this.waiting); // a held arrow key asks once, at its end
    this.waiting = setTimeout(() => this.trigger("pick", { layer, head }), 120);
  }

  destroy() {
    clearTimeout(this.waiting);
    this.frame.remove();
  }
}

/** Mount a matrix into `root`; `trigger("pick", {layer, head})` hears what was chosen, from 0. */
export function mount(root, trigger) {
  return new Heads(root, trigger);
}
