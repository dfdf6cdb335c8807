/* excited.js: pictures under a head's attention, drawn as the lens draws. While one is pointed at, or
 * has the focus, its photo shows without; a click on one is told.
 *
 * Props: {maps: URL of a lens payload, each image in a head's place, items, in its order: [{id, label,
 * light, dark, score, photo: URL or null, row or null}]}.
 */

import { overlay } from "./attention.js";
import { make } from "./dom.js";

const SIDE = 400; // pixels of a drawing
const GRAY = "data:image/svg+xml,<svg xmlns='http://www.w3.org/2000/svg' width='4' height='4'><rect width='4' height='4' fill='gray'/></svg>";
const STYLE = { mode: "heat", opacity: 0.65, keep: 0.6, colors: "inferno", smooth: true, outline: true };

/** A share as people read it; near all, what is left of it matters. */
function percent(share) {
  return (100 * share).toFixed(share > 0.985 && share < 1 ? 1 : 0);
}

class Excited {
  constructor(root, trigger) {
    this.trigger = trigger;
    this.grid = make("div", "excited", { role: "list" });
    root.append(this.grid);
  }

  async update(props) {
    this.wanted = props;
    const [answer] = await Promise.all([fetch(props.maps), overlay()]);
    if (this.wanted !== props) return; // another head was quicker
    if (!answer.ok) return this.grid.replaceChildren(await answer.text());
    const lens = readLens(new Uint8Array(await answer.arrayBuffer()));
    if (this.wanted !== props) return;
    const cards = props.items.map((item) => this.card(item));
    this.grid.replaceChildren(...cards);
    for (const [place, item] of props.items.entries()) {
      const photo = await this.photo(item);
      if (this.wanted !== props) return;
      paintStage(cards[place].querySelector("canvas"), photo, lens, lens.map(0, place), STYLE, make("canvas"));
    }
  }

  /** The image of an item; a gray ground where its file is gone. */
  async photo(item) {
    const image = make("img", "", { src: item.photo ?? GRAY });
    await image.decode();
    return image;
  }

  card(item) {
    const name = item.label ?? item.id.split("/").at(-1);
    const frame = make("span", "picture");
    if (item.photo) frame.append(make("img", "photo", { src: item.photo, alt: "", draggable: "false" }));
    frame.append(make("canvas", "attended", { width: SIDE, height: SIDE, role: "img", "aria-label": name }));
    if (!item.photo) frame.append(make("span", "lost", {}, "its file is gone"));
    frame.append(make("b", "score", { title: "of the attention, on a tenth of the patches" }, `${percent(item.score)} %`));
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
    this.wanted = null;
    this.grid.remove();
  }
}

/** Mount the pictures into `root`; `trigger("pick", row)` hears which one was clicked. */
export function mount(root, trigger) {
  return new Excited(root, trigger);
}
