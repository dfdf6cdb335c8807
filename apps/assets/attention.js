/* attention.js: the lens of one image, as overlay.js draws it, inside a page of Streamlit.
 *
 * Props: {payload: URL, image: URL, title, layer, head: from 0, head -1 is their mean; null keeps what
 * is shown}. Everything but another image happens here; where layer or head come to rest is told.
 */

import { make } from "./dom.js";

const REST = 700; // milliseconds after which a layer or head counts as chosen

let drawing = null;

/** overlay.js is a classic script, which the other app has inline: it leaves its functions behind. */
export function overlay() {
  drawing ??= new Promise((resolve, reject) => {
    const src = new URL("./overlay.js", import.meta.url);
    const script = make("script", "", { src });
    script.addEventListener("load", () => resolve(globalThis.mountLens));
    script.addEventListener("error", () => reject(new Error("overlay.js is not there")));
    document.head.append(script);
  });
  return drawing;
}

class Attention {
  constructor(root, trigger) {
    this.trigger = trigger;
    this.home = make("div", "attention");
    this.home.addEventListener("lens", ({ detail }) => this.chose(detail.layer, detail.head));
    root.append(this.home);
  }

  async update(props) {
    this.wanted = props;
    const { layer, head } = props;
    const place = layer == null ? {} : { layer, head };
    const mountLens = await overlay();
    if (this.wanted !== props || this.gone) return;
    if (this.shown === props.payload) return this.follow(place);
    const answer = await fetch(props.payload);
    if (!answer.ok) return this.home.replaceChildren(make("p", "", {}, await answer.text()));
    const payload = new Uint8Array(await answer.arrayBuffer());
    if (this.wanted !== props || this.gone) return; // another image was quicker
    this.shown = props.payload;
    const picture = { payload, image: props.image, title: props.title, state: place };
    if (this.lens) await this.lens.update(picture);
    else {
      this.lens = mountLens(this.home, picture);
      await this.lens.ready;
    }
    this.told = this.place();
  }

  /** Back and forward change what is shown; a choice that is not told yet is newer. */
  follow(place) {
    if (place.layer == null || this.waiting || !this.lens) return;
    this.lens.apply(place);
    this.told = this.place();
  }

  place() {
    const { layer, head } = this.lens.state;
    return `${layer}.${head}`;
  }

  chose(layer, head) {
    if (this.told == null || this.told === `${layer}.${head}`) return;
    clearTimeout(this.waiting);
    this.waiting = setTimeout(() => {
      this.waiting = 0;
      this.told = `${layer}.${head}`;
      this.trigger("place", { layer, head });
    }, REST);
  }

  destroy() {
    this.gone = true;
    clearTimeout(this.waiting);
    this.lens?.destroy();
    this.home.remove();
  }
}

/** Mount the lens into `root`; `trigger("place", {layer, head})` hears what was chosen, from 0. */
export function mount(root, trigger) {
  return new Attention(root, trigger);
}
