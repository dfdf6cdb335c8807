/* thumbs.js: a paged grid of thumbnails with labels (and scores); a click on one is told.
 *
 * Props: {thumbs: URL prefix, items: [{row, id, label, light, dark, score?}], page, pages, note,
 * panel: selector of what scrolls around the grid}.
 * Streamlit's own images cannot be clicked, and pictures inside tables travel as base64; here each
 * is a small JPEG that the browser fetches, and keeps, by address.
 */

import { make } from "./dom.js";

/** Cosines of many models all lie near 1, where two digits rank nothing. */
const digits = (cosine) => cosine.toFixed(cosine > 0.98 ? 4 : 2);

class Thumbs {
  constructor(root, trigger) {
    this.trigger = trigger;
    this.grid = make("div", "grid", { role: "list" });
    this.pager = make("nav", "pager", { "aria-label": "Pages" });
    this.frame = make("div", "thumbs", {}, this.grid, this.pager);
    root.append(this.frame);
  }

  update(props) {
    this.props = props;
    this.grid.replaceChildren(...props.items.map((item) => this.card(item)));
    this.frame.dataset.size = props.size ?? "small";
    this.drawPager();
  }

  card(item) {
    const image = make("img", "", { src: `${this.props.thumbs}/${item.row}`, alt: item.label ?? item.id, loading: "lazy", draggable: "false" });
    image.addEventListener("error", () => image.replaceWith(make("div", "lost", {}, "file is gone")));
    const caption = make("span", "caption");
    if (item.label != null) {
      const dot = make("i", "dot");
      dot.style.background = `light-dark(${item.light}, ${item.dark})`;
      caption.append(dot);
    }
    caption.append(make("span", "name", {}, item.label ?? item.id.split("/").at(-1)));
    const picture = make("span", "picture", {}, image);
    if (item.score != null) picture.append(make("b", "score", { title: "cosine similarity" }, digits(item.score)));
    const card = make("button", "card", { type: "button", "data-row": item.row, title: item.id }, picture, caption);
    card.addEventListener("click", () => this.tell("pick", item.row));
    return make("div", "", { role: "listitem" }, card);
  }

  drawPager() {
    const { page, pages, note } = this.props;
    this.pager.hidden = !(pages > 1);
    const turn = (text, title, to) => {
      const button = make("button", "turn", { type: "button", title, "aria-label": title }, text);
      button.disabled = to < 0 || to >= pages;
      button.addEventListener("click", () => this.tell("page", to));
      return button;
    };
    this.pager.replaceChildren(turn("‹", "Previous page", page - 1), make("span", "", {}, note ?? ""), turn("›", "Next page", page + 1));
  }

  /** What comes next is another content of the panel: begin at its top. */
  tell(name, value) {
    const panel = document.querySelector(this.props.panel);
    panel?.scrollTo(0, 0);
    if (panel?.getBoundingClientRect().top < 0) panel.scrollIntoView();
    this.trigger(name, value);
  }

  destroy() {
    this.frame.remove();
  }
}

/** Mount a grid into `root`; `trigger(name, value)` hears "pick" (a row) and "page" (a number). */
export function mount(root, trigger) {
  return new Thumbs(root, trigger);
}
