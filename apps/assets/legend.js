/* legend.js: which color means what; a click on an entry filters to it, pointing at one shows it.
 *
 * `on.toggle(code)` and `on.focus(code or -1)` are told; `mark(codes)` says which are filtered to.
 */

import { format, make } from "./dom.js";

const SEARCH_FROM = 24; // entries

export class Legend {
  constructor(on) {
    this.on = on;
    this.element = make("aside", "legend", { "aria-label": "Legend" });
  }

  /** @param legend {title, kind: "categories"|"numbers", entries: [[name, count]], low, high} */
  show({ title, kind, entries, low, high }, colors) {
    this.element.replaceChildren(make("h3", "", {}, title));
    if (kind === "numbers") this.element.append(...ramp(low, high, colors));
    else this.list(entries, colors);
  }

  list(entries, colors) {
    const list = make("ul", "");
    entries.forEach(([name, count], code) => list.append(make("li", "", {}, this.entry(name, count, code, colors))));
    if (entries.length > SEARCH_FROM) this.element.append(search(list, entries.length));
    this.element.append(list);
  }

  entry(name, count, code, { light, dark }) {
    const dot = make("i", "dot");
    dot.style.background = `light-dark(${light[code]}, ${dark[code]})`;
    const attributes = { type: "button", "data-code": code, "aria-pressed": "false", title: `Show only ${name}` };
    const entry = make("button", "entry", attributes, dot, make("span", "name", {}, name), make("span", "number", {}, format(count)));
    entry.addEventListener("click", () => this.on.toggle(code));
    entry.addEventListener("pointerenter", () => this.on.focus(code));
    entry.addEventListener("pointerleave", () => this.on.focus(-1));
    return entry;
  }

  mark(codes) {
    for (const entry of this.element.querySelectorAll("[data-code]"))
      entry.setAttribute("aria-pressed", codes.has(Number(entry.dataset.code)));
  }
}

/** The colors of a column of numbers; the last code means "no value" and is no part of it. */
function ramp(low, high, { light, dark }) {
  const stops = light.slice(0, -1).map((color, i) => `light-dark(${color}, ${dark[i]})`);
  const bar = make("div", "ramp");
  bar.style.background = `linear-gradient(to right, ${stops.join(", ")})`;
  return [bar, make("div", "ends", {}, make("span", "", {}, format(low)), make("span", "", {}, format(high)))];
}

function search(list, count) {
  const field = make("input", "search", { type: "search", placeholder: `Find among ${count}`, "aria-label": "Find in the legend" });
  field.addEventListener("input", () => {
    for (const item of list.children) item.hidden = !item.textContent.toLowerCase().includes(field.value.toLowerCase());
  });
  return field;
}
