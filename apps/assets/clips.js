// The tab Video: a clip under the attention of one head, on one color scale.

(globalThis.lensTabs ??= []).push({id: "clips", title: "Video", mount(home, desk) {
  const state = {layer: -1, head: "", smoothing: 0.3, opacity: 0.6, colormap: "inferno", frames: 240, every: 2};
  let files = [], stop = null, result = null;

  const input = lensNode("input", {type: "file", multiple: true, hidden: true, accept: "video/*,image/*",
    "aria-label": "Choose a clip", onchange: () => choose([...input.files])});
  const drop = lensNode("button", {type: "button", class: "clip-drop", onclick: () => input.click()},
    lensNode("strong", {}, "Choose a clip"),
    lensNode("span", {}, "a video, an animated picture, or several frames; 20 MB, a minute, 240 frames"));
  const shown = lensNode("div", {class: "lens-stage clip-stage"}, drop);
  const told = lensNode("span", {role: "status"});
  const bar = lensNode("progress", {hidden: true, max: 1, "aria-label": "Progress"});
  const layerRow = lensNode("div");
  const start = lensButton("Look at the clip", look, {disabled: true});
  const cancel = lensButton("Cancel", () => stop?.abort(), {hidden: true});
  const save = lensButton("Save clip", () => {
    if (result) saveAs(result.name, result.bytes, result.kind);
  }, {disabled: true});
  const slider = (name, value, most, change) => lensSlider(name, {min: 0, max: most, step: 1, value,
    text: (v) => `${v} %`, change: (v) => change(v / 100)}).row;
  const every = lensSelect("Frames", [[1, "Every frame"], [2, "Every 2nd"], [4, "Every 4th"], [8, "Every 8th"]],
    state.every, (step) => { state.every = Number(step); });
  const panel = lensNode("div", {class: "lens-panel"}, lensNode("div", {class: "lens-controls"},
    lensButton("Choose another clip", () => input.click()), layerRow,
    slider("smoothing in time", 100 * state.smoothing, 95, (v) => { state.smoothing = v; }),
    slider("opacity", 100 * state.opacity, 100, (v) => { state.opacity = v; }),
    lensNode("div", {class: "lens-pair"},
      lensSelect("Color map", Object.keys(LENS_COLORS).map((key) => [key, key[0].toUpperCase() + key.slice(1)]), state.colormap,
        (key) => { state.colormap = key; }).row,
      every.row),
    start, cancel, save,
    lensNode("p", {class: "lens-note"}, "Colors mean the same in every frame. What moves fast wants little smoothing.")));
  home.replaceChildren(lensNode("div", {class: "lens"}, lensNode("div", {class: "lens-layout"},
    lensNode("figure", {class: "lens-figure"}, shown,
      lensNode("figcaption", {class: "lens-caption"}, told, bar)), panel), input));

  function controls() {
    const {layers, heads} = readLens(bytesFromBase64(desk.picture().payload));
    const options = (count, word) => [...Array(count).keys()].map((at) => [at, `${word} ${at + 1}`]);
    if (state.layer < 0 || state.layer >= layers) state.layer = layers - 1;
    if (Number(state.head) >= heads) state.head = "";
    layerRow.replaceChildren(lensNode("div", {class: "lens-pair"},
      lensSelect("Layer", options(layers, "Layer"), state.layer, (layer) => { state.layer = Number(layer); }).row,
      lensSelect("Head", [["", "Mean"], ...options(heads, "Head")], state.head, (head) => { state.head = head; }).row));
  }

  function choose(chosen) {
    input.value = "";
    if (!chosen.length) return;
    files = chosen.sort((a, b) => a.name.localeCompare(b.name, "en", {numeric: true}));
    told.textContent = files.length > 1 ? `${files.length} frames` : files[0].name;
    start.disabled = false;
    if (files.length > 1) { // picked by hand: each of them is wanted
      state.every = 1;
      every.select.value = 1;
    }
    look();
  }

  /** Look at the chosen clip. One that is being looked at gives way, and says nothing any more. */
  async function look() {
    stop?.abort();
    const mine = stop = new AbortController(), {signal} = mine, chosen = files;
    const gone = new Promise((_, reject) => { signal.addEventListener("abort", () => reject(signal.reason)); });
    const tell = (sentence) => { if (stop === mine && !signal.aborted) told.textContent = sentence; };
    [start.disabled, cancel.hidden, bar.hidden] = [true, false, false];
    bar.removeAttribute("value");
    try {
      const sent = await Promise.race([gone, send(chosen, signal, tell)]);
      tell("waiting in line"); // until the server begins it, and can be asked how far it is
      const {head, ...rest} = state;
      const asked = desk.ask("clip", {...rest, files: sent, ...(head === "" ? {} : {head: Number(head)})}, {
        signal, told({done, total, message}) {
          if (stop === mine && total) bar.value = done / total;
          tell(total ? `${message}: ${done} of ${total}` : message);
        }});
      const answer = await Promise.race([gone, asked]); // a cancelled one is not waited for
      if (stop === mine) show(answer, chosen[0].name);
    } catch (error) {
      if (stop === mine) told.textContent = signal.aborted ? "Cancelled." : `${error.message ?? "The clip could not be sent"}.`;
    }
    if (stop === mine) [start.disabled, cancel.hidden, bar.hidden, stop] = [false, true, true, null];
  }

  /** The files as the server names them; one that was chosen twice counts once. */
  async function send(chosen, signal, tell) {
    const sent = new Map();
    for (const [at, file] of chosen.entries()) {
      if (signal.aborted) break;
      tell(`Sending ${chosen.length > 1 ? `frame ${at + 1} of ${chosen.length}` : file.name} …`);
      const named = await desk.upload(file);
      sent.set(named.path, named);
    }
    return [...sent.values()];
  }

  function show({clip, kind, told: sentence, note}, called) {
    const bytes = bytesFromBase64(clip);
    if (result) URL.revokeObjectURL(result.url);
    const url = URL.createObjectURL(new Blob([bytes], {type: kind}));
    const name = `${fileName(called, "attention")}.${kind === "video/mp4" ? "mp4" : "webp"}`;
    result = {url, bytes, kind, name};
    shown.replaceChildren(kind === "video/mp4"
      ? lensNode("video", {src: url, controls: true, loop: true, autoplay: true, muted: true, playsinline: true})
      : lensNode("img", {src: url, alt: `${called} under attention`}));
    told.textContent = note ? `${sentence}. ${note}` : sentence;
    save.disabled = false;
  }

  controls();
  return {show: controls};
}});
