// The tab Object: masks that can be taken away, as a cutout or as polygons.

(globalThis.lensTabs ??= []).push({id: "object", title: "Object", mount(home, desk) {
  const state = {kind: "object", side: "component", refine: true, layer: null, head: LENS_MEAN, keep: 0.6, look: "spotlight"};
  let photo = null, mask = null, answer = null, asked = 0, later = 0;

  const headRows = lensNode("div", {class: "lens-controls", hidden: true});
  const side = lensSelect("Of the cut", [["component", "The object"], ["whole", "All on its side"],
    ["other", "The other side"]], state.side, (chosen) => { state.side = chosen; refresh(); }).row;
  const keep = lensSlider("attention kept", {min: 0, max: 100, step: 1, value: 100 * state.keep,
    text: (value) => `${value} %`, change: (value) => { state.keep = value / 100; soon(); }});
  const frame = tabFrame(home, "The picture with a mask",
    lensNode("div", {class: "lens-row"}, lensNode("span", {class: "lens-legend"}, "Mask"),
      lensSegments("Mask", [["object", "The object"], ["head", "A head's attention"]], state.kind, (kind) => {
        state.kind = kind;
        headRows.hidden = kind !== "head";
        side.hidden = kind !== "object";
        refresh();
      })),
    headRows, side,
    lensNode("div", {class: "lens-row"}, lensNode("span", {class: "lens-legend"}, "Shown as"),
      lensSegments("Shown as", [["spotlight", "Spotlight"], ["outline", "Outline"], ["cutout", "Cutout"]],
        state.look, (look) => { state.look = look; paint(); })),
    lensNode("div", {class: "lens-checks"},
      lensCheck("Follow the photo's edges", true, (on) => { state.refine = on; refresh(); })),
    lensNode("div", {class: "lens-pair"}, lensButton("Save cutout", cutout), lensButton("Save polygons", () => {
      if (answer) saveAs(`${fileName(desk.picture().title, state.kind)}.json`, answer.polygons, "application/json");
    })),
    lensNode("p", {class: "lens-note"}, "The object is found without any label: patches are cut in two where the " +
      "model's features agree least (TokenCut). Which side is the object is a guess."));

  function headControls() {
    const {layers, heads} = readLens(bytesFromBase64(desk.picture().payload));
    if (state.layer === null || state.layer >= layers) state.layer = layers - 1;
    if (state.head >= heads) state.head = LENS_MEAN;
    const options = (count, word) => [...Array(count).keys()].map((at) => [at, `${word} ${at + 1}`]);
    headRows.replaceChildren(
      lensNode("div", {class: "lens-pair"},
        lensSelect("Layer", options(layers, "Layer"), state.layer, (layer) => { state.layer = Number(layer); refresh(); }).row,
        lensSelect("Head", [[LENS_MEAN, "Mean"], ...options(heads, "Head")], state.head,
          (head) => { state.head = Number(head); refresh(); }).row),
      keep.row);
  }

  const question = () => ({kind: state.kind, refine: state.refine, ...(state.kind === "object"
    ? {[state.side]: true} : {layer: state.layer, head: state.head, keep: state.keep})});

  function soon() { // while a slider moves, once it rests
    clearTimeout(later);
    later = setTimeout(refresh, 250);
  }

  async function refresh() {
    headControls();
    const number = (asked += 1);
    try {
      const [picture, given] = await Promise.all([frame.photo(desk.picture().image), desk.ask("object", question())]);
      const drawn = new Image();
      drawn.src = `data:image/png;base64,${given.mask}`;
      await drawn.decode();
      if (number !== asked) return;
      [photo, answer, mask] = [picture, given, drawn];
    } catch {
      return; // the status line says why
    }
    frame.told.textContent = answer.told;
    paint();
  }

  async function cutout() {
    try {
      const {cutout: png} = await desk.ask("object", {...question(), cutout: true});
      saveAs(`${fileName(desk.picture().title, state.kind)}.png`, bytesFromBase64(png), "image/png");
    } catch {
      return; // the status line says why
    }
  }

  /** The mask as a canvas of the drawing's size, opaque inside. */
  function inside() {
    const {width, height} = frame.canvas;
    const canvas = lensNode("canvas", {width, height});
    const context = canvas.getContext("2d");
    context.imageSmoothingEnabled = state.refine;
    context.drawImage(mask, 0, 0, width, height);
    const pixels = context.getImageData(0, 0, width, height);
    for (let i = 0; i < pixels.data.length; i += 4) pixels.data[i + 3] = pixels.data[i];
    context.putImageData(pixels, 0, 0);
    return canvas;
  }

  function paint() {
    if (!photo || !mask) return;
    const context = frame.canvas.getContext("2d");
    const {width, height} = frame.canvas;
    const cut = inside();
    const object = lensNode("canvas", {width, height});
    const own = object.getContext("2d");
    own.drawImage(photo, 0, 0, width, height);
    own.globalCompositeOperation = "destination-in";
    own.drawImage(cut, 0, 0);
    context.clearRect(0, 0, width, height);
    frame.stage.classList.toggle("checkered", state.look === "cutout");
    if (state.look !== "cutout") {
      context.drawImage(photo, 0, 0, width, height);
      if (state.look === "spotlight") {
        desaturate(context, width, height, 1);
        context.fillStyle = "rgb(6 9 20 / 66%)";
        context.fillRect(0, 0, width, height);
      }
      outline(context, cut, Math.max(width, height) / 400);
    }
    context.drawImage(object, 0, 0);
    frame.canvas.setAttribute("aria-label", `${desk.picture().title}. ${answer.told}.`);
  }

  /** A white edge around the mask: its silhouette, drawn a little aside in all directions. */
  function outline(context, cut, reach) {
    const edge = lensNode("canvas", {width: cut.width, height: cut.height});
    const own = edge.getContext("2d");
    for (let turn = 0; turn < 16; turn++) {
      own.drawImage(cut, reach * Math.cos((turn * Math.PI) / 8), reach * Math.sin((turn * Math.PI) / 8));
    }
    own.globalCompositeOperation = "source-in";
    own.fillStyle = "#ffffff";
    own.fillRect(0, 0, edge.width, edge.height);
    context.drawImage(edge, 0, 0);
  }

  refresh();
  return {show: refresh};
}});
