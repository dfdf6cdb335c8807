// A second picture beside the page's own: chosen among the gallery's nearest neighbors and the
// examples that the page shows anyway, or sent by the visitor. Wants overlay.js, and `say` of lens.js.
//
//   const second = secondPicture(desk, {change: (named, title) => load(named)});
//   place.append(second.element);
//   second.named()                        // {example} | {key, row} | {path, name}, or null
//   second.choose(named, title)           // as a click on its tile
//   second.first()                        // the one to begin with: the nearest, else an example
//   second.takeDrops(element)             // a file dropped there is the second picture

const SECOND_NEAREST = 6; // neighbors that are offered: the examples beside them stay in view

/** A chooser of a second picture. `change` may return a promise: where it rejects, what was
    there before is marked again. `examples` are {title, image} in the order of the server's. */
function secondPicture(desk, {examples = pageExamples(), change}) {
  const own = []; // what the visitor has sent, newest first
  let chosen = null, shown = null, tiles = []; // tiles: [button, what it names]

  const input = lensNode("input", {type: "file", accept: "image/*", class: "lens-quiet", tabindex: "-1",
    "aria-label": "Choose a second picture", onchange: () => { take(input.files[0]); input.value = ""; }});
  const drop = lensNode("button", {type: "button", class: "second-drop", onclick: () => input.click()},
    lensNode("strong", {}, "Second picture"), lensNode("span", {}, "choose or drop"));
  const groups = lensNode("div", {class: "second-groups"});
  const element = lensNode("section", {class: "second", "aria-label": "Second picture"}, drop, input, groups);

  const same = (one, other) => JSON.stringify(one) === JSON.stringify(other);
  const nearest = () => pageNeighbors().slice(0, SECOND_NEAREST);
  const offered = () => examples.map(({title, image}, example) => ({named: {example}, title, image}));

  function build() {
    tiles = [];
    const there = [["Yours", own], ["Nearest neighbors", nearest()], ["Examples", offered()]];
    groups.replaceChildren(...there.filter(([, pictures]) => pictures.length).map(([name, pictures]) =>
      lensNode("div", {class: "second-group", role: "group", "aria-label": name},
        lensNode("span", {"aria-hidden": "true"}, name),
        lensNode("div", {class: "second-tiles"}, ...pictures.map(tile)))));
    mark();
  }

  /** Mark the chosen tile where it stands: a rebuilt one would lose the keyboard's place. */
  function mark() {
    for (const [button, named] of tiles) button.setAttribute("aria-pressed", String(same(named, chosen)));
  }

  function tile({named, title, image}) {
    const button = lensNode("button", {type: "button", class: "second-tile", title,
      onclick: () => choose(named, title)}, lensNode("img", {src: image, alt: title}));
    tiles.push([button, named]);
    return button;
  }

  async function choose(named, title) {
    chosen = named;
    mark();
    try {
      await change(named, title);
      if (chosen === named) shown = named;
    } catch { // the status line says why
      if (chosen === named) chosen = shown;
      mark();
    }
  }

  async function take(file) {
    if (!file) return;
    const name = file.name || "pasted picture";
    const {limit} = desk.picture();
    if (!file.size) return say("problem", `${name} is empty (0 bytes). Choose another picture.`);
    if (limit && file.size > limit) {
      const megabytes = (bytes) => (bytes / 2 ** 20).toFixed(0);
      return say("problem", `${name} is ${megabytes(file.size)} MB; up to ${megabytes(limit)} MB can be shown here.`);
    }
    say("busy", `Sending ${name} …`);
    let named;
    try {
      named = await desk.upload(file);
    } catch {
      return say("problem", `${name} could not be sent. Is the program still running?`);
    }
    own.unshift({named, title: name, image: URL.createObjectURL(file)});
    for (const {image} of own.splice(4)) URL.revokeObjectURL(image);
    build();
    await choose(named, name);
  }

  function takeDrops(place) {
    const files = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");
    place.addEventListener("dragover", (event) => {
      if (!files(event)) return;
      event.preventDefault();
      event.stopPropagation(); // else the page would take it for its first picture
      document.body.classList.remove("lens-drop");
      place.classList.add("second-over");
    });
    place.addEventListener("dragleave", () => place.classList.remove("second-over"));
    place.addEventListener("drop", (event) => {
      if (!files(event)) return;
      event.preventDefault();
      event.stopPropagation();
      place.classList.remove("second-over");
      take(event.dataTransfer.files[0]);
    });
  }

  /** The nearest neighbor where there is a gallery, else an example that is not the page's picture. */
  function first() {
    const others = offered().filter(({title}) => title !== desk.picture().title);
    return nearest()[0] ?? others[0] ?? offered()[0] ?? null;
  }

  build();
  takeDrops(element);
  const near = document.getElementById("lens-neighbors");
  if (near) new MutationObserver(build).observe(near, {childList: true, subtree: true});
  return {element, named: () => chosen, choose, first, takeDrops};
}

/** The picker's examples, read off the page, so that they are not sent twice. */
function pageExamples() {
  return [...document.querySelectorAll("#lens-picker .example img")].map(({src, alt}) =>
    ({title: alt.replace(/^Example: /, ""), image: src}));
}

/** The nearest neighbors that the page shows: their gallery's public name and row stand in the address
    of each thumbnail. */
function pageNeighbors() {
  const found = [];
  for (const {src, alt} of document.querySelectorAll("#lens-neighbors .hit img")) {
    const [, key, row] = /thumbs\/([^/]+)\/(\d+)$/.exec(src) ?? [];
    if (key) found.push({named: {key, row: Number(row)}, title: alt, image: src});
  }
  return found;
}
