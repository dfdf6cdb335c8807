/* tip.js: what a point on the map is: a thumbnail, its label, its name, beside the pointer. */

import { make } from "./dom.js";

const DELAY = 60; // milliseconds
const BESIDE = 18; // CSS pixels from the pointer

export class Tip {
  constructor() {
    this.element = make("figure", "tip", { hidden: "" }, make("img", "", { alt: "" }), make("figcaption", ""));
    this.infos = new Map(); // address -> {id, label}
  }

  /** Show, in a moment, what lies at `${info}/${row}`; another call or `hide` before that wins. */
  show(row, { info, thumbs }, at, room) {
    this.place(at, room);
    clearTimeout(this.waiting);
    this.wanted = `${info}/${row}`;
    this.waiting = setTimeout(() => this.fill(`${info}/${row}`, `${thumbs}/${row}`), DELAY);
  }

  hide() {
    clearTimeout(this.waiting);
    this.wanted = null;
    this.element.hidden = true;
  }

  async fill(address, picture) {
    if (!this.infos.has(address)) {
      try {
        this.infos.set(address, await (await fetch(address)).json());
      } catch {
        return; // the server is away; the map still works
      }
    }
    if (address !== this.wanted) return;
    const { id, label } = this.infos.get(address);
    const [image, caption] = this.element.children;
    const name = id.split("/").at(-1);
    image.src = picture;
    caption.replaceChildren(make("b", "", {}, label ?? name), make("span", "", {}, label == null ? "no label" : name));
    this.element.hidden = false;
    this.place(this.at, this.room);
  }

  /** Beside the pointer `at`, inside `room` [width, height]. */
  place([x, y], [width, height]) {
    [this.at, this.room] = [[x, y], [width, height]];
    const { offsetWidth: w, offsetHeight: h } = this.element;
    const left = x + BESIDE + w > width ? x - BESIDE - w : x + BESIDE;
    const top = Math.min(Math.max(4, y - h / 2), height - h - 4);
    this.element.style.transform = `translate(${Math.max(4, left)}px, ${top}px)`;
  }
}
