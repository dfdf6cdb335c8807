// The parts of the lens page around the overlay: brand, status line, picker, stage, neighbors.
// Each is mounted by Gradio's `js_on_load` as `lensParts[name]({element, props, trigger, ...})`;
// `props.value` is what apps/lens.py sent. Text from outside only ever becomes text nodes.

/** Make an element: attributes, `on*` listeners, children (strings become text, never markup). */
function node(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value === true) made.setAttribute(name, "");
    else if (value !== false && value != null) made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

// What this browser keeps: nothing, where it lets no page keep anything.
const store = {
  read(name) { try { return localStorage.getItem(name); } catch { return null; } },
  write(name, text) { try { localStorage.setItem(name, text); } catch { /* then not */ } },
};

// What the page was opened with, until its picture is there; and this browser's own uploads, so that
// an address opened again finds them. `lensAddress` is what the server is told at the start.
const lensUploads = {
  read() { try { return JSON.parse(store.read("dino-uploads")) ?? {}; } catch { return {}; } },
  keep(content, file) {
    const kept = Object.entries(this.read()).filter(([key]) => key !== content).slice(-19);
    store.write("dino-uploads", JSON.stringify(Object.fromEntries([...kept, [content, file]])));
  },
};
globalThis.lensAddress = () => {
  const upload = lensUploads.read()[new URLSearchParams(location.search).get("image")];
  return JSON.stringify({query: location.search, upload});
};

/** A view's fields (dino_core.views.View) from the drawing's state, as a query; and back. */
function viewQuery({content, model, model_hash: hash, size}, state) {
  const query = new URLSearchParams({image: content, model, model_hash: hash});
  const set = (name, value, usual) => { if (value !== usual) query.set(name, value); };
  set("layer", state.layer, -1);
  if (state.head >= 0) query.set("head", state.head);
  if (size) query.set("size", size);
  if (state.from === "patch" && state.patch) query.set("query", `${state.patch.row},${state.patch.column}`);
  if (state.head === LENS_LIKE && query.has("query")) query.set("similar", "true");
  if (state.from === "rollout") query.set("rollout", "true");
  const {box} = state;
  if (box) query.set("box", [box.left, box.top, box.right, box.bottom].map((side) => side.toFixed(4)));
  set("mode", state.mode, "heat");
  set("keep", state.keep, 0.6);
  set("opacity", state.opacity, 0.6);
  set("colormap", state.colors, "inferno");
  set("smooth", state.smooth, true);
  set("outline", state.outline, true);
  return query;
}

function stateOf(search) {
  const query = new URLSearchParams(search), state = {};
  const read = (name, key, turn) => { if (query.has(name)) state[key] = turn(query.get(name)); };
  for (const [name, key] of [["layer", "layer"], ["head", "head"], ["keep", "keep"], ["opacity", "opacity"]]) {
    read(name, key, (text) => (Number.isFinite(Number(text)) ? Number(text) : undefined));
    if (state[key] === undefined) delete state[key];
  }
  if (query.has("image")) state.opacity ??= 0.6;
  if (query.get("keep") === "none") Object.assign(state, {keep: 1, outline: false});
  read("mode", "mode", String);
  read("colormap", "colors", String);
  read("smooth", "smooth", (text) => text === "true");
  read("outline", "outline", (text) => text === "true");
  read("rollout", "from", (text) => (text === "true" ? "rollout" : "class"));
  if (/^\d+,\d+$/.test(query.get("query") ?? "")) {
    const [row, column] = query.get("query").split(",").map(Number);
    Object.assign(state, {from: "patch", patch: {row, column}});
  }
  if (query.get("similar") === "true") state.head = LENS_LIKE;
  const sides = (query.get("box") ?? "").split(",").map(Number);
  if (sides.length === 4 && sides.every((side) => side >= 0 && side <= 1)) {
    const [left, top, right, bottom] = sides;
    if (left < right && top < bottom) state.box = {left, top, right, bottom};
  }
  if (!LENS_MODES.some(([mode]) => mode === state.mode)) delete state.mode;
  if (!(state.colors in LENS_COLORS)) delete state.colors;
  return state;
}

// What the page waits for: a new look, until the status line tells of it, and questions, counted.
// The parts of the page share it; a look that was begun elsewhere is known by its class.
const waits = (globalThis.lensWaits ??= {look: false, questions: 0});
function waiting(part) {
  waits.look ||= !waits.questions && document.body.classList.contains("lens-busy");
  Object.assign(waits, part);
  document.body.classList.toggle("lens-busy", waits.look || waits.questions > 0);
}
const busy = (on) => waiting({look: on});
globalThis.lensBusy = busy;

/** Show a sentence in the status line without asking the server. */
function say(state, sentence) {
  busy(state === "busy");
  globalThis.lensSay?.(state, sentence);
}

function brand({element, props}) {
  const mark = node("span", {class: "brand-mark", "aria-hidden": "true"});
  mark.innerHTML = props.value; // assets/mark.svg
  element.firstChild.replaceChildren(mark,
    node("div", {class: "brand-text"}, node("h1", {}, "DINO Lens"),
      node("p", {}, "what each attention head looks at")));
}

/** The switch between light and dark; without a choice the system's wish holds. */
function colors({element}) {
  const dark = () => document.body.classList.contains("dark");
  const button = node("button", {type: "button", class: "icon-button", onclick: () => wear(!dark(), true)});
  const wear = (on, keep) => {
    document.body.classList.toggle("dark", on);
    button.textContent = on ? "☀" : "☾";
    button.title = on ? "Light colors" : "Dark colors";
    button.setAttribute("aria-label", button.title);
    if (keep) store.write("dino-theme", on ? "dark" : "light");
  };
  const asked = new URLSearchParams(location.search).get("__theme") ?? store.read("dino-theme");
  wear(asked ? asked === "dark" : dark(), false);
  element.firstChild.replaceChildren(button);
}

function status({element, props, watch}) {
  const line = node("p", {class: "status", role: "status", "aria-live": "polite"});
  element.firstChild.replaceChildren(line);
  globalThis.lensSay = (state, sentence) => {
    line.dataset.state = state;
    line.setAttribute("role", state === "problem" ? "alert" : "status");
    line.textContent = sentence;
  };
  const show = () => {
    const {state, sentence} = props.value ?? {};
    if (state !== "loading") busy(false);
    globalThis.lensSay(state, sentence);
  };
  watch("value", show);
  show();
}

const LOOK_PATIENCE = 20_000; // milliseconds until a look is asked for again, then twice as many

function picker({element, props, trigger, upload}) {
  const {examples, limit} = props.value;
  const tiles = [], added = new Set();
  const choose = (tile) => {
    for (const other of tiles) other.setAttribute("aria-pressed", other === tile);
  };
  let asked = 0;
  /** Ask for a look, and again while nothing comes of it: an answer has been missing without what
   *  stream.js mends, why is not known. The server keeps what it saw, and does not look twice. */
  const ask = (event, data, patience = LOOK_PATIENCE) => {
    const number = (asked += 1);
    trigger(event, data);
    setTimeout(() => number === asked && waits.look && ask(event, data, 2 * patience), patience);
  };
  async function take(file) {
    if (!file) return;
    const name = file.name || "pasted picture";
    if (file.type.startsWith("video/")) {
      return say("problem", `${name} is a video. Look at it under Video.`);
    }
    if (file.size === 0) return say("problem", `${name} is empty (0 bytes). Choose another picture.`);
    if (file.size > limit) {
      const size = (file.size / 2 ** 20).toFixed(0);
      return say("problem", `${name} is ${size} MB; up to ${limit / 2 ** 20} MB can be shown here.`);
    }
    say("busy", `Sending ${name} …`);
    try {
      const {path} = await upload(file);
      choose(null);
      say("busy", `Looking at ${name} …`);
      ask("upload", {path, name});
    } catch (error) {
      say("problem", `${name} could not be sent. Is the program still running?`);
    }
  }

  const input = node("input", {type: "file", accept: "image/*", class: "visually-hidden", tabindex: "-1",
    "aria-label": "Choose a picture", onchange: () => { take(input.files[0]); input.value = ""; }});
  const drop = node("button", {type: "button", class: "drop", onclick: () => input.click()},
    node("strong", {}, "Add a picture"), node("span", {}, "choose, drop or paste"));
  const camera = node("button", {type: "button", class: "drop camera-open", onclick: async () => {
    try {
      take(await takePhoto());
    } catch (error) {
      say("problem", error.message);
    }
  }}, node("strong", {}, "Camera"), node("span", {}, "take one"));
  tiles.push(...examples.map((example, index) => node("button", {
    type: "button", class: "example", "aria-pressed": index === 0,
    title: `${example.title} — ${example.credit}`,
    onclick: () => {
      choose(tiles[index]);
      say("busy", `Looking at ${example.title} …`);
      ask("select", {index});
    },
  }, node("img", {src: example.image, alt: `Example: ${example.title}`}))));
  const strip = node("div", {class: "examples", role: "group", "aria-label": "Examples and your pictures"}, ...tiles);
  element.firstChild.replaceChildren(node("section", {class: "picker", "aria-label": "Picture"}, drop, camera, input,
    strip));

  /** A tile for a picture that was added, so that one comes back to it. */
  globalThis.lensAdded = ({upload: sent, title, image, content}) => {
    if (!sent || added.has(content)) return;
    const tile = node("button", {type: "button", class: "example", "aria-pressed": true, title,
      onclick: () => {
        choose(tile);
        say("busy", `Looking at ${title} …`);
        ask("upload", sent);
      }}, node("img", {src: image, alt: title}));
    added.add(content);
    tiles.push(tile);
    strip.prepend(tile);
    choose(tile);
  };
  const over = (on) => (event) => {
    if (![...(event.dataTransfer?.types ?? [])].includes("Files")) return;
    event.preventDefault();
    document.body.classList.toggle("lens-drop", on);
  };
  document.addEventListener("dragover", over(true));
  document.addEventListener("dragleave", (event) => { if (!event.relatedTarget) over(false)(event); });
  document.addEventListener("drop", (event) => { over(false)(event); take(event.dataTransfer?.files[0]); });
  document.addEventListener("paste", (event) => {
    const file = [...(event.clipboardData?.files ?? [])].find((one) => one.type.startsWith("image/"));
    if (file) { event.preventDefault(); take(file); }
  });
}

// Questions to the server, by number. `answers` resolves what `stage` asked. Gradio only shows a note
// where it drops a question (its queue is full, its server gone), so one is given up without an answer.
globalThis.lensWaiting ??= new Map();
const PATIENCE = 600_000; // milliseconds without a sign that an answer is being made
const IN_LINE = "waiting in line"; // what is said of any number that is not being answered

/** Mounted beside the stage, shows nothing: hands each answer to whoever asked. */
function answers({props, watch}) {
  watch("value", () => {
    const {number, answer, problem, job} = props.value ?? {};
    const asker = globalThis.lensWaiting.get(number);
    if (job) return asker?.told?.(job);
    globalThis.lensWaiting.delete(number);
    if (globalThis.lensAskFailed && !problem) say("ready", "Ready");
    globalThis.lensAskFailed = Boolean(problem);
    if (problem) asker?.reject(new Error(problem));
    else asker?.resolve(answer);
  });
}

/** The picture under its tabs. The first, Heads, is overlay.js; the others are in `lensTabs`, each
    `{id, title, mount(home, desk)}`, mounted when it is first opened. `mount` may return `{show()}`,
    which is called whenever the tab is in front and the picture has changed since, and `failed()`:
    whether the tab lacks the answer it asked for, so that coming back to it asks again.

    desk.ask(about, details, {told, signal})   promises the server's answer about the picture
    desk.upload(file)          promises {path, name} for a question that names a second picture
    desk.picture()             {title, image, payload, fed, ...} as apps/lens.py `drawn` sent it */
function stage({element, props, trigger, upload, watch}) {
  const home = element.firstChild;
  home.replaceChildren(node("div", {class: "stage-empty"}, node("div", {class: "stage-pulse"}),
    node("p", {}, "The picture and what each head looks at appear here.")));
  let asked = 0, seen = 0, open = null;

  const visit = crypto.getRandomValues(new Uint32Array(2)).join("-"); // so that nobody guesses numbers

  /** `told(job)` hears how far a long answer is; `signal` (an AbortSignal) cancels it. */
  function ask(about, details = {}, {told = null, signal = null} = {}) {
    waiting({questions: waits.questions + 1});
    asked += 1;
    const number = `${visit} ${asked}`;
    const watching = told && setInterval(() => trigger("tick", {number}), 700);
    let patience = 0;
    signal?.addEventListener("abort", () => trigger("stop", {number}));
    return new Promise((resolve, reject) => {
      const wait = () => {
        clearTimeout(patience);
        patience = setTimeout(() => reject(unanswered(number)), PATIENCE);
      };
      const heard = (job) => {
        if (job.message !== IN_LINE) wait();
        told?.(job);
      };
      globalThis.lensWaiting.set(number, {resolve, reject, told: heard});
      wait();
      trigger("select", {about, number, details});
    }).finally(() => {
      clearInterval(watching);
      clearTimeout(patience);
      waiting({questions: waits.questions - 1});
    });
  }

  function unanswered(number) {
    globalThis.lensWaiting.delete(number);
    globalThis.lensAskFailed = true;
    say("problem", "No answer came; try again.");
    return new Error("no answer came; try again");
  }
  async function send(file) {
    const {path} = await upload(file);
    return {path, name: file.name || "pasted picture"};
  }
  const desk = {ask, upload: send, picture: () => props.value};
  globalThis.lensAsk = ask;
  globalThis.lensScene = () => (props.value ? sceneOf(props.value) : "");

  let opened = new URLSearchParams(location.search).get("image") && location.search;

  /** The state that the address asked for, once, when its picture comes. */
  function linked() {
    if (!opened || new URLSearchParams(opened).get("image") !== props.value.content) {
      if (seen > 1) opened = null; // the visitor went on to another picture
      return {};
    }
    const state = stateOf(opened);
    opened = null;
    return state;
  }

  const heads = {id: "heads", title: "Heads", mount(place) {
    const now = () => ({...props.value, payload: bytesFromBase64(props.value.payload), state: linked()});
    const lens = mountLens(place, {...now(), ask});
    const sizes = sizeSlider((size) => { busy(true); trigger("submit", {size}); });
    const query = () => viewQuery(props.value, lens.state);
    const share = node("div", {class: "lens-pair"},
      node("button", {type: "button", class: "lens-button", onclick: (event) => copy(event.target)}, "Copy link"),
      node("button", {type: "button", class: "lens-button", onclick: save}, "Export"));
    place.querySelector(".lens-controls").append(sizes.row, share);
    sizes.show(props.value);

    async function copy(button) {
      const link = new URL(`?${address(query())}`, location.href).href;
      await navigator.clipboard?.writeText(link).then(() => { button.textContent = "Copied"; },
        () => say("problem", "This browser lets no page copy; take the link from its address bar."));
      setTimeout(() => { button.textContent = "Copy link"; }, 1500);
    }
    async function save() {
      try {
        const {zip} = await ask("export", {query: `${query()}`});
        saveAs(`${fileName(props.value.title, "view")}.zip`, bytesFromBase64(zip), "application/zip");
      } catch {
        return; // the status line says why
      }
    }
    let writing = 0, patch = "";
    place.addEventListener("lens-box", ({detail: box}) => globalThis.lensNear?.({box}));
    place.addEventListener("lens", ({detail}) => {
      const chosen = detail.from === "patch" && detail.patch;
      if (chosen && `${chosen.row},${chosen.column}` !== patch) {
        const [h, w] = detail.grid;
        globalThis.lensNear?.({patch: {x: (chosen.column + 0.5) / w, y: (chosen.row + 0.5) / h}});
      }
      patch = chosen ? `${chosen.row},${chosen.column}` : "";
    });
    place.addEventListener("lens", () => { // browsers allow few changes of the address a second
      clearTimeout(writing);
      writing = setTimeout(() => write(query()), 300);
    });
    return {show() {
      sizes.show(props.value);
      return lens.update(now());
    }};
  }};

  /** The address of this view, and of the gallery beside it and the tab; no token. */
  function address(query) {
    if (open && open.id !== "heads") query.set("tab", open.id);
    const gallery = globalThis.lensGallery?.();
    if (gallery) query.set("gallery", gallery);
    return query;
  }
  function write(query) {
    for (const name of ["token", "__theme"]) {
      const value = new URLSearchParams(location.search).get(name);
      if (value) query.set(name, value);
    }
    if (opened) return;
    const before = new URLSearchParams(location.search).get("image"), now = query.get("image");
    const keep = before && before !== now ? "pushState" : "replaceState"; // Back brings pictures back
    history[keep](null, "", `?${address(query)}`);
  }
  const tabs = [heads, ...(globalThis.lensTabs ?? [])].map((tab) => ({...tab,
    button: node("button", {type: "button", role: "tab", id: `tab-${tab.id}`, class: "tab",
      "aria-controls": `panel-${tab.id}`, onclick: () => bring(tab.id)}, tab.title),
    home: node("div", {role: "tabpanel", id: `panel-${tab.id}`, class: "tab-panel",
      "aria-labelledby": `tab-${tab.id}`}),
  }));
  const bar = node("div", {class: "tabs", role: "tablist", "aria-label": "Ways to look at the picture",
    onkeydown: (event) => {
      const step = {ArrowLeft: -1, ArrowRight: 1}[event.key];
      if (!step) return;
      const next = tabs[(tabs.indexOf(open) + step + tabs.length) % tabs.length];
      bring(next.id);
      next.button.focus();
    }}, ...tabs.map((tab) => tab.button));

  function bring(id) {
    open = tabs.find((tab) => tab.id === id) ?? tabs[0];
    for (const tab of tabs) {
      tab.button.setAttribute("aria-selected", tab === open);
      tab.button.tabIndex = tab === open ? 0 : -1;
      tab.home.hidden = tab !== open;
    }
    if (!open.mounted) open.mounted = open.mount(open.home, desk) ?? {};
    else if (open.seen !== seen || open.mounted.failed?.()) open.mounted.show?.();
    open.seen = seen;
    const query = new URLSearchParams(location.search);
    if (query.has("image") && (query.get("tab") ?? "heads") !== open.id) {
      query.delete("tab");
      write(query);
    }
  }
  const show = () => {
    if (!props.value) return;
    seen += 1;
    if (props.value.upload) lensUploads.keep(props.value.content, props.value.upload);
    globalThis.lensAdded?.(props.value);
    const first = !open, tab = new URLSearchParams(location.search).get("tab");
    if (first) home.replaceChildren(bar, ...tabs.map((tab) => tab.home));
    bring(open?.id ?? "heads");
    if (first && tab) bring(tab);
    const [front] = tabs; // Heads, also behind another tab: the address is told from it
    if (front !== open && front.seen !== seen) {
      front.mounted.show();
      front.seen = seen;
    }
  };
  window.addEventListener("popstate", () => location.reload()); // the picture before
  watch("value", show);
  show();
}

/** The size at which the model looks, with what it will cost told while the slider moves. */
function sizeSlider(change) {
  const input = node("input", {type: "range", id: "lens-size", min: 0, step: 1, "data-lens": "size"});
  const output = node("output", {for: "lens-size"});
  const cost = node("p", {class: "lens-cost", role: "status"});
  let sizes = [];
  const tell = () => {
    const [, height, width, patches, memory, seconds] = sizes[Number(input.value)];
    output.textContent = `${width} × ${height} px`;
    input.setAttribute("aria-valuetext", output.textContent);
    const time = seconds < 0.95 ? `${seconds.toFixed(1)} s` : `${Math.round(seconds)} s`;
    cost.textContent = `${patches.toLocaleString("en")} patches · about ${time} and ` +
      `${Math.max(1, Math.round(memory / 2 ** 20)).toLocaleString("en")} MB`;
  };
  input.addEventListener("input", tell);
  input.addEventListener("change", () => change(sizes[Number(input.value)][0]));
  const row = node("div", {class: "lens-row"}, node("label", {for: "lens-size"}, "Seen at", output), input, cost);
  return {row, show({fed, sizes: offered}) {
    sizes = offered;
    input.max = sizes.length - 1;
    const gap = ([, height, width]) => Math.abs(height - fed[0]) + Math.abs(width - fed[1]);
    input.value = sizes.reduce((best, one, i) => (gap(one) < gap(sizes[best]) ? i : best), 0);
    tell();
  }};
}

/** What is like the picture, or like a box or a patch of it, in the gallery that is picked. */
function neighbors({element, props, trigger, watch}) {
  const home = element.firstChild;
  const state = {scene: "", of: "whole", box: null, patch: null, column: "", value: "", offered: null};
  let whole = null, wanted = false, asking = false;

  const show = () => {
    const near = props.value;
    globalThis.lensGallery = () => near?.key;
    if (!near) return home.replaceChildren();
    const other = near.key !== whole?.key;
    whole = near;
    wanted = false;
    forget();
    if (other) Object.assign(state, {column: "", value: "", offered: null});
    draw(near);
    if (!near.neighbors) return;
    if (other) offer();
    else if (state.of !== "whole" || state.value) ask();
  };

  /** Box and patch are of one picture as one model sees it: of another they do not count. */
  function forget() {
    const scene = globalThis.lensScene?.() ?? "";
    if (scene !== state.scene) Object.assign(state, {scene, of: "whole", box: null, patch: null});
  }

  /** The picture's box or patch has changed: whoever asked for it before gets the new one's. */
  globalThis.lensNear = (part) => {
    forget();
    Object.assign(state, part);
    const [changed] = Object.keys(part), before = state.of;
    if (part.box) state.of = "box";
    else if (!part[changed] && state.of === changed) state.of = "whole";
    if (!whole?.neighbors) return; // they are on their way
    redraw();
    if (state.of === changed || state.of !== before) ask();
  };

  /** What can be chosen for this gallery; and what is chosen already is asked for. */
  async function offer() {
    const of = whole;
    try {
      const offered = await globalThis.lensAsk("filters");
      if (of === whole) state.offered = offered;
    } catch {
      return; // the status line says why
    }
    if (of !== whole) return;
    if (state.of === "patch" && !state.offered.patches) state.of = "whole";
    redraw();
    if (state.of !== "whole") ask();
  }

  /** One question is under way at a time, and after it only the newest wish is asked for. */
  async function ask() {
    wanted = true;
    if (asking) return;
    asking = true;
    while (wanted) {
      wanted = false;
      const of = whole, part = {box: {box: state.box}, patch: {patch: state.patch}, whole: {}}[state.of];
      const filter = state.value ? {column: state.column, value: state.value} : {};
      try {
        const near = await globalThis.lensAsk("near", {...part, ...filter});
        if (!wanted && of === whole) draw({...whole, ...near});
      } catch { // the status line says why
        if (wanted || of !== whole) continue;
        Object.assign(state, {of: "whole", value: ""});
        draw(whole);
      }
    }
    asking = false;
  }

  function redraw() {
    home.querySelector(".near-tools")?.replaceChildren(...tools());
  }

  function draw(near) {
    const content = near.neighbors ? hits(near, tools(), trigger) : nothing(near);
    home.replaceChildren(node("section", {class: "near", "aria-labelledby": "near-title"}, ...content));
  }

  function tools() {
    const choice = (key, text, able, hint) => node("label", {title: able ? "" : hint}, node("input", {
      type: "radio", name: "near-of", value: key, checked: state.of === key, disabled: !able,
      onchange: () => { state.of = key; ask(); }}), node("span", {}, text));
    const held = state.offered?.patches;
    const of = node("div", {class: "lens-segments", role: "radiogroup", "aria-label": "Like what"},
      choice("whole", "Whole picture", true, ""),
      choice("box", "Box", Boolean(state.box), "Drag over the picture to draw a box"),
      choice("patch", "Patch", Boolean(state.patch && held),
        held ? "Click a patch of the picture" : "This gallery holds no patches: scripts/embed.py --patches 49 adds them"));
    const columns = state.offered?.columns ?? {};
    if (!Object.keys(columns).length) return [of];
    const select = (label, options, value, change) => node("select", {"aria-label": label,
      onchange: (event) => change(event.target.value)},
    ...options.map(([key, text]) => node("option", {value: key, selected: key === value}, text)));
    const names = Object.keys(columns);
    state.column ||= names[0];
    return [of, node("div", {class: "near-filter"}, node("span", {}, "Only where"),
      names.length > 1 ? select("Column", names.map((name) => [name, name]), state.column, (name) => {
        Object.assign(state, {column: name, value: ""});
        ask();
      }) : node("span", {}, names[0]),
      select("Value", [["", "anything"], ...columns[state.column].map((value) => [value, value])], state.value,
        (value) => { state.value = value; ask(); }))];
  }

  watch("value", show);
  show();
}

function nothing({sentence, command}) {
  const more = command ? [node("code", {}, command)] : [];
  const title = node("h2", {id: "near-title"}, "Nearest neighbors");
  return [title, node("p", {class: "near-note"}, sentence), ...more];
}

/** Beside generated images: how to have one's own. */
function ownFolder(command) {
  return [node("p", {class: "near-note near-own"}, "These images are generated. To search your own folder:"),
    node("code", {}, command)];
}

/** Where in a hit's image the patch is found: its likeness as heat, the patch framed. */
function whereIn(hit) {
  if (!hit.map) return [];
  const [h, w] = hit.map.grid;
  const codes = bytesFromBase64(hit.map.codes);
  const small = node("canvas", {width: w, height: h});
  const heat = small.getContext("2d").createImageData(w, h);
  for (let i = 0; i < codes.length; i++) heat.data.set([255, 190, 40, Math.max(0, codes[i] - 170) * 2.2], 4 * i);
  small.getContext("2d").putImageData(heat, 0, 0);
  const canvas = node("canvas", {width: 12 * w, height: 12 * h, "aria-hidden": "true"});
  const context = canvas.getContext("2d");
  context.drawImage(small, 0, 0, canvas.width, canvas.height);
  const [left, top, right, bottom] = hit.patch;
  context.strokeStyle = "#ffffff";
  context.lineWidth = Math.max(2, canvas.width / 60);
  context.strokeRect(left * canvas.width, top * canvas.height, (right - left) * canvas.width, (bottom - top) * canvas.height);
  return [canvas];
}

function hits(near, tools, trigger) {
  const images = near.generated ? "generated images" : "images";
  const about = `in ${near.gallery} · ${near.count.toLocaleString("en")} ${images}`;
  const thumb = (hit) => new URL(`thumbs/${near.key}/${hit.row}`, document.baseURI).href;
  const cards = near.neighbors.map((hit) => node("li", {},
    node("button", {type: "button", class: "hit", title: `${hit.id}\nLook at this picture`, onclick: () => {
      say("busy", `Looking at ${hit.id} …`);
      window.scrollTo({top: 0, behavior: "smooth"});
      trigger("select", {key: near.key, row: hit.row});
    }},
    node("span", {class: "hit-picture"},
      node("img", {src: thumb(hit), alt: hit.id, loading: "lazy"}), ...whereIn(hit)),
    node("span", {class: "hit-text"},
      node("span", {class: "hit-label"}, hit.label ?? hit.id.split("/").pop()),
      node("span", {class: "hit-score", title: "cosine similarity"}, hit.score.toFixed(3))))));
  const bars = near.vote.slice(0, 6).map(([label, share]) => node("li", {},
    node("span", {class: "vote-label"}, label),
    node("span", {class: "vote-share"}, `${Math.round(100 * share)} %`),
    node("span", {class: "vote-bar", style: `--share: ${share}`})));
  const vote = bars.length ? [node("div", {class: "vote"}, node("h3", {}, "Their vote"),
    node("ol", {}, ...bars), node("p", {}, "Closer neighbors count more."))] : [];
  const list = cards.length ? node("ul", {class: "hits"}, ...cards)
    : node("p", {class: "near-note"}, "No image of the gallery is left by this filter.");
  return [
    node("header", {}, node("h2", {id: "near-title"}, "Nearest neighbors"), node("p", {}, about)),
    node("div", {class: "near-tools lens"}, ...tools),
    node("div", {class: "near-layout"}, ...vote, list),
    ...(near.generated ? ownFolder(near.command) : []),
  ];
}

globalThis.lensParts = {brand, colors, status, picker, stage, answers, neighbors};
const lensParts = globalThis.lensParts;
