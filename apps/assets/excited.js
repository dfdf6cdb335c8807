/* excited.js: pictures under a head's attention. While one is pointed at, or has the focus, its photo
 * shows without; a click on one is told.
 *
 * Props: {items: [{id, label, light, dark, score, picture: URL, photo: URL or null, row or null}]}.
 */

import { make } from "./dom.js";

class Excited {
  constructor(root, trigger) {
    this.trigger = trigger;
    this.grid = make("div", "excited", { role: "list" });
    root.append(this.grid);
  }

  update({ items }) {
    this.grid.replaceChildren(...items.map((item) => this.card(item)));
  }

  card(item) {
    const name = item.label ?? item.id.split("/").at(-1);
    const frame = make("span", "picture");
    if (item.photo) frame.append(make("img", "photo", { src: item.photo, alt: "", draggable: "false" }));
    frame.append(make("img", "attended", { src: item.picture, alt: name, draggable: "false" }));
    if (!item.photo) frame.append(make("span", "lost", {}, "its file is gone"));
    frame.append(make("b", "score", { title: "of the attention, on a tenth of the patches" }, `${Math.round(100 * item.score)} %`));
    const caption = make("span", "caption");
    if (item.label != null) {
      const dot = make("i", "dot");
      dot.style.background = `light-dark(${item.light}, ${item.dark})`;
      caption.append(dot);
    }
    caption.append(make("span", "name", {}, name));
    const card = make("button", "card", { type: "button", title: item.id }, frame, caption);
    card.disabled = item.row == null;
    card.addEventListener("click", () => this.trigger("pick", item.row));
    return make("div", "", { role: "listitem" }, card);
  }

  destroy() {
    this.grid.remove();
  }
}

/** Mount the pictures into `root`; `trigger("pick", row)` hears which one was clicked. */
export function mount(root, trigger) {
  return new Excited(root, trigger);
}
