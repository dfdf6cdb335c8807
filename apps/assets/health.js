// The tab Health: how sound the model's heads and tokens are on this picture.

(globalThis.lensTabs ??= []).push({id: "health", title: "Health", mount(home, desk) {
  const card = lensNode("section", {class: "lens-card", "aria-live": "polite"});
  home.replaceChildren(lensNode("div", {class: "lens"}, card));
  let asked = 0;

  async function refresh() {
    const number = (asked += 1);
    if (!card.firstChild) card.append(lensNode("p", {class: "lens-note"}, "Looking at every head …"));
    let found;
    try {
      found = await desk.ask("health");
    } catch {
      return; // the status line says why
    }
    if (number !== asked) return;
    card.replaceChildren(
      lensNode("h2", {}, "Heads and tokens on this picture"),
      lensNode("ul", {class: "health-said"}, ...found.sentences.map((sentence) => lensNode("li", {}, sentence))),
      table(found),
      lensNode("p", {class: "lens-note"}, "Entropy: 0 is one patch, 1 all patches alike; the stronger the color, the more focused. " +
        "One picture is no verdict on a model: look at several."));
  }

  function table({heads, layers}) {
    const count = heads.length / layers;
    const columns = [...Array(count).keys()];
    const row = (layer) => lensNode("tr", {}, lensNode("th", {scope: "row"}, `Layer ${layer + 1}`),
      ...columns.map((head) => cell(heads[layer * count + head])));
    return lensNode("div", {class: "health-scroll", tabindex: "0", role: "region", "aria-label": "Table of heads"},
      lensNode("table", {class: "health"},
        lensNode("thead", {}, lensNode("tr", {}, lensNode("td"),
          ...columns.map((head) => lensNode("th", {scope: "col"}, `Head ${head + 1}`)))),
        lensNode("tbody", {}, ...[...Array(layers).keys()].map((at) => row(layers - 1 - at)))));
  }

  function cell({entropy, spread, peak, state, twins, verdict}) {
    const same = twins.length ? `; same map as head ${twins.map((head) => head + 1).join(", ")}` : "";
    const odd = state !== "fine" || twins.length > 0;
    return lensNode("td", {class: odd ? "odd" : "", style: `--focus: ${1 - (entropy ?? 1)}`, title:
      `${verdict}${same}. Spread ${spread ?? "–"} patches; its brightest patch has ${peak ?? "–"} times the mean.`},
    entropy === null ? "–" : entropy.toFixed(2),
    lensNode("small", {}, state !== "fine" ? state : twins.length ? "twin" : ""));
  }

  refresh();
  return {show: refresh};
}});
