// The tab Compare: one picture, two models, whose heads are matched by what they look at.
// Wants overlay.js and pieces.js.

const COMPARE_SHARED = ["opacity", "keep", "mode", "colors", "smooth", "outline"]; // set on the left for both
const COMPARE_ALIKE = 0.8; // as in dino_core/lenses/matching.py
const COMPARE_TYPED = "typed"; // the choice that is no model

(globalThis.lensTabs ??= []).push({id: "compare", title: "Compare", mount(home, desk) {
  const lenses = [null, null];
  let answer = null, chosen = null, asked = 0, failed = false;
  let silent = 0; // while a side is brought to another picture, it does not move the other one

  // choosing the second model
  const own = lensNode("strong");
  const select = lensSelect("Second model", [], null, (value) => {
    typed.hidden = value !== COMPARE_TYPED;
    if (typed.hidden) choose(value);
    else typed.firstChild.focus();
  });
  const typed = lensNode("form", {class: "compare-typed", hidden: true,
    onsubmit: (event) => {
      event.preventDefault();
      const name = typed.firstChild.value.trim();
      if (name) choose(name);
    }},
  lensNode("input", {type: "text", "aria-label": "Name of the second model", spellcheck: "false",
    placeholder: "timm:vit_small_patch16_224.dino", autocapitalize: "none"}),
  lensButton("Open", () => {}, {type: "submit"}));

  // both sides, and what is said of them
  const said = lensNode("p", {class: "compare-said", role: "status"});
  const places = ["first", "second"].map((side) => lensNode("div", {class: `compare-side compare-${side}`}));
  const list = lensNode("ol", {class: "compare-pairs"});
  const sentence = lensNode("p", {class: "lens-note"});
  const partners = lensNode("section", {class: "compare-partners", "aria-label": "Heads that belong together"},
    lensNode("h3", {}, "Heads that belong together"), list, sentence);
  const alone = lensNode("p", {class: "lens-note compare-empty"});
  const bar = lensNode("div", {class: "compare-bar"},
    lensNode("div", {class: "lens-row"}, lensNode("span", {class: "lens-legend"}, "First model"), own),
    lensNode("div", {class: "lens-row"}, select.row, typed));
  const root = lensNode("div", {class: "compare"}, bar, said, alone,
    lensNode("div", {class: "compare-board"}, ...places));
  home.replaceChildren(lensNode("div", {class: "lens"}, root));

  // -- the second model ----------------------------------------------------------------------

  function offer() {
    const {models, model} = desk.picture();
    const options = models.map(([title, spec]) => [spec, title]);
    if (chosen && !options.some(([spec]) => spec === chosen)) options.push([chosen, chosen]);
    options.push([COMPARE_TYPED, "Another, by its name …"]);
    select.select.replaceChildren(...options.map(([value, text]) =>
      lensNode("option", {value, selected: value === chosen}, text)));
    if (!chosen) select.select.selectedIndex = -1;
    own.textContent = own.title = models.find(([, spec]) => spec === model)?.[0] ?? model;
  }

  /** A listed model that is not the first one; null when there is none. */
  function another() {
    const {models, model} = desk.picture();
    return models.map(([, spec]) => spec).find((spec) => spec !== model) ?? null;
  }

  async function choose(spec) {
    const before = chosen;
    chosen = spec;
    try {
      await load();
      typed.hidden = true;
    } catch { // the status line says why; the first models stay on the page
      if (chosen === spec) chosen = before;
      if (typed.hidden) offer();
    }
  }

  async function load() {
    const number = (asked += 1), spec = chosen;
    if (!spec) {
      offer();
      root.classList.add("compare-none");
      alone.textContent = another() ? "Choose a second model above." : "There is no other model here yet. Train one " +
        "(python scripts/train.py), or type the name of a published one above. Two checkpoints of a run are two " +
        "models, too.";
      return;
    }
    const told = await answered(number, spec);
    if (number !== asked) return;
    const {image, title, payload} = desk.picture();
    answer = told; // before the sides: should a later load fail, it is what they show
    silent += 1;
    try {
      await Promise.all([show(0, {payload: bytesFromBase64(payload), image, title}),
        show(1, {payload: bytesFromBase64(told.payload), image, title})]);
    } finally {
      silent -= 1;
    }
    root.classList.remove("compare-none");
    if (number === asked) offer();
    follow(0);
  }

  async function answered(number, spec) {
    try {
      const told = await desk.ask("compare", {model: spec});
      if (number === asked) failed = false;
      return told;
    } catch (error) {
      if (number === asked) failed = true;
      throw error;
    }
  }

  function show(side, picture) {
    if (lenses[side]) return lenses[side].update(picture);
    lenses[side] = mountLens(places[side], picture);
    places[side].addEventListener("lens", () => follow(side));
    if (side === 1) places[1].querySelector(".lens-panel").append(partners);
    return lenses[side].ready;
  }

  // -- one side follows the other ------------------------------------------------------------

  /** Bring the other side to the partner of the head that `side` shows. */
  function follow(side) {
    if (silent || !answer || !lenses[1]) return;
    const {layer, head} = lenses[side].state;
    const layers = side ? [answer.back[layer], layer] : [layer, answer.across[layer]];
    const link = answer.links.find(({first, second}) => first === layers[0] && second === layers[1]);
    if (!link) return; // the other side's picture is on its way
    const pair = head < 0 ? null : link.pairs.find((heads) => heads[side] === head);
    const part = {layer: layers[1 - side], head: pair ? pair[1 - side] : LENS_MEAN};
    if (!side) for (const name of COMPARE_SHARED) part[name] = lenses[0].state[name];
    lenses[1 - side].apply(part);
    lenses[1].apply({hues: huesOf(link)});
    tell(link, side, pair);
  }

  /** By each head of the right side, the head whose color it has: its partner's, else one of no head. */
  function huesOf({pairs, alone: [left, right]}) {
    const hues = [];
    for (const [first, second] of pairs) hues[second] = first;
    right.forEach((head, at) => { hues[head] = pairs.length + left.length + at; });
    return hues;
  }

  function tell(link, side, pair) {
    const names = [own.textContent, answer.title], {head} = lenses[side].state;
    const layers = `Layer ${link.first + 1}` + (link.first === link.second ? "" : ` and layer ${link.second + 1}`);
    if (head < 0) {
      said.textContent = `${layers}: the mean of all heads on both sides. Choose a head to see its partner.`;
    } else if (pair) {
      const [first, second, correlation] = pair;
      const alike = correlation >= COMPARE_ALIKE ? "they look alike" : "the best there is, but they do not look alike";
      said.textContent = `${layers}: head ${first + 1} of ${names[0]} goes with head ${second + 1} of ${names[1]} ` +
        `(correlation ${correlation.toFixed(2)}; ${alike}).`;
    } else {
      said.textContent = `${layers}: head ${head + 1} of ${names[side]} has no partner, as ${names[1 - side]} has ` +
        `fewer heads; beside it is the mean of them all.`;
    }
    listPairs(link);
  }

  function listPairs({pairs, alone: left, sentence: text}) {
    const now = lenses[0].state.head;
    const rows = [...pairs].sort((a, b) => b[2] - a[2]).map(([first, second, correlation]) => lensNode("li", {},
      lensNode("button", {type: "button", class: "compare-pair", "aria-pressed": String(first === now),
        onclick: () => pick(first)},
      lensNode("span", {}, `Head ${first + 1}`),
      lensNode("span", {class: "compare-bar-of", style: `--share: ${Math.max(correlation, 0)}`,
        "aria-hidden": "true"}),
      lensNode("span", {}, `Head ${second + 1}`),
      lensNode("span", {class: "compare-value", title: "correlation of their maps"}, correlation.toFixed(2)))));
    const lone = left.map((heads, side) => heads.length && lensNode("li", {class: "compare-lone"},
      `Without a partner ${side ? "on the right" : "on the left"}: head ${heads.map((head) => head + 1).join(", ")}`));
    list.replaceChildren(...rows, ...lone.filter(Boolean));
    sentence.textContent = text;
  }

  function pick(head) {
    lenses[0].apply({head});
    follow(0);
    list.querySelector('[aria-pressed="true"]')?.focus();
  }

  chosen = another();
  load().catch(() => { chosen = null; return load(); });
  return {failed: () => failed, show() {
    chosen ??= another();
    load().catch(() => {}); // the status line says why; what was there stays
  }};
}});
