// The tab Colors: patches in the colors of their features' three main directions.

(globalThis.lensTabs ??= []).push({id: "colors", title: "Colors", mount(home, desk) {
  const state = {of: "picture", foreground: false, opacity: 0.8, smooth: true, kept: null};
  let photo = null, answer = null, asked = 0, failed = false;

  const of = lensSegments("Colors of", [["picture", "This picture"], ["gallery", "With gallery"], ["kept", "Kept"]],
    state.of, (value) => { state.of = value; refresh(); });
  const opacity = lensSlider("opacity", {min: 0, max: 100, step: 1, value: 100 * state.opacity,
    text: (value) => `${value} %`, change: (value) => { state.opacity = value / 100; paint(); }});
  const file = lensNode("input", {type: "file", accept: ".npz", hidden: true, "aria-label": "Open saved colors",
    onchange: () => open()});
  const note = lensNode("p", {class: "lens-note"}, "Patches that mean the same to the model have the same color. " +
    "Keep these colors, and other pictures are shown in them too.");
  const frame = tabFrame(home, "Patches colored by their features",
    lensNode("div", {class: "lens-row"}, lensNode("span", {class: "lens-legend"}, "Colors fitted on"), of),
    opacity.row,
    lensNode("div", {class: "lens-checks"},
      lensCheck("Foreground only", false, (on) => { state.foreground = on; refresh(); }),
      lensCheck("Smooth", true, (on) => { state.smooth = on; paint(); })),
    lensNode("div", {class: "lens-pair"}, lensButton("Keep these colors", keep),
      lensButton("Save picture", () => {
        lensNode("a", {href: frame.canvas.toDataURL("image/png"),
          download: `${fileName(desk.picture().title, "colors")}.png`}).click();
      })),
    lensNode("div", {class: "lens-pair"},
      lensButton("Save colors", () => answer && saveAs(`${fileName(desk.picture().title, "colors")}.npz`,
        bytesFromBase64(answer.basis), "application/octet-stream")),
      lensButton("Open colors", () => file.click())),
    file, note);

  function keep() {
    if (!answer) return;
    state.kept = answer.basis;
    frame.told.textContent = "Kept: other pictures can be shown in these colors.";
  }

  async function open() {
    const bytes = new Uint8Array(await file.files[0].arrayBuffer());
    file.value = "";
    const before = state.kept;
    state.kept = btoa(Array.from(bytes, (byte) => String.fromCharCode(byte)).join(""));
    state.of = "kept";
    of.set("kept");
    if (!await refresh()) state.kept = before;
  }

  /** Ask for the colors of the picture that is there now; whether they came. */
  async function refresh() {
    if (state.of === "kept" && !state.kept) {
      frame.told.textContent = "No colors are kept yet: press Keep these colors, or open saved ones.";
      return false;
    }
    const {of: fitted, foreground, kept: basis} = state;
    const number = (asked += 1);
    try {
      const [picture, given] = await Promise.all([pictureAt(desk.picture().image),
        desk.ask("colors", {of: fitted, foreground, ...(fitted === "kept" ? {basis} : {})})]);
      if (number !== asked) return true;
      [photo, answer, failed] = [picture, given, false];
      fitCanvas(frame.canvas, photo);
      frame.told.textContent = given.told;
    } catch {
      if (number === asked) failed = true;
      return false; // the status line says why
    }
    paint();
    return true;
  }

  function paint() {
    if (!photo || !answer) return;
    const context = frame.canvas.getContext("2d");
    const {width, height} = frame.canvas;
    context.globalAlpha = 1;
    context.drawImage(photo, 0, 0, width, height);
    desaturate(context, width, height, state.opacity);
    context.globalAlpha = state.opacity;
    context.imageSmoothingEnabled = state.smooth;
    context.imageSmoothingQuality = "high";
    context.drawImage(patchPicture(bytesFromBase64(answer.rgb), answer.grid), 0, 0, width, height);
    context.globalAlpha = 1;
    frame.canvas.setAttribute("aria-label", `${desk.picture().title} colored by patch features. ${answer.told}.`);
  }

  refresh();
  return {show: refresh, failed: () => failed};
}});
