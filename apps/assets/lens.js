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

const busy = (on) => document.body.classList.toggle("lens-busy", on);

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
    if (keep) localStorage.setItem("dino-theme", on ? "dark" : "light");
  };
  const asked = new URLSearchParams(location.search).get("__theme") ?? localStorage.getItem("dino-theme");
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

function picker({element, props, trigger, upload}) {
  const {examples, limit} = props.value;
  const tiles = [];
  const choose = (tile) => {
    for (const other of tiles) other.setAttribute("aria-pressed", other === tile);
  };
  async function take(file) {
    if (!file) return;
    const name = file.name || "pasted picture";
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
      trigger("upload", {path, name});
    } catch (error) {
      say("problem", `${name} could not be sent. Is the program still running?`);
    }
  }

  const input = node("input", {type: "file", accept: "image/*", class: "visually-hidden", tabindex: "-1",
    "aria-label": "Choose a picture", onchange: () => { take(input.files[0]); input.value = ""; }});
  const drop = node("button", {type: "button", class: "drop", onclick: () => input.click()},
    node("strong", {}, "Add a picture"), node("span", {}, "choose, drop or paste"));
  tiles.push(...examples.map((example, index) => node("button", {
    type: "button", class: "example", "aria-pressed": index === 0,
    title: `${example.title} — ${example.credit}`,
    onclick: () => {
      choose(tiles[index]);
      say("busy", `Looking at ${example.title} …`);
      trigger("select", {index});
    },
  }, node("img", {src: example.image, alt: `Example: ${example.title}`}))));
  element.firstChild.replaceChildren(node("section", {class: "picker", "aria-label": "Picture"}, drop, input,
    node("div", {class: "examples", role: "group", "aria-label": "Examples"}, ...tiles)));

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

function stage({element, props, watch}) {
  const home = element.firstChild;
  const empty = node("div", {class: "stage-empty"}, node("div", {class: "stage-pulse"}),
    node("p", {}, "The picture and what each head looks at appear here."));
  home.replaceChildren(empty);
  let lens = null;
  const show = async () => {
    if (!props.value) return;
    const {payload, image, title} = props.value;
    const next = {payload: bytesFromBase64(payload), image, title};
    if (lens) await lens.update(next);
    else await (lens = mountLens(home, next)).ready;
  };
  watch("value", show);
  show();
}

function neighbors({element, props, trigger, watch}) {
  const home = element.firstChild;
  const show = () => {
    const near = props.value;
    if (!near) return home.replaceChildren();
    const content = near.neighbors ? hits(near, trigger) : nothing(near);
    home.replaceChildren(node("section", {class: "near", "aria-labelledby": "near-title"}, ...content));
  };
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

function hits(near, trigger) {
  const images = near.generated ? "generated images" : "images";
  const about = `in ${near.gallery} · ${near.count.toLocaleString("en")} ${images}`;
  const thumb = (hit) => new URL(`thumbs/${near.key}/${hit.row}`, document.baseURI).href;
  const cards = near.neighbors.map((hit) => node("li", {},
    node("button", {type: "button", class: "hit", title: `${hit.id}\nLook at this picture`, onclick: () => {
      say("busy", `Looking at ${hit.id} …`);
      window.scrollTo({top: 0, behavior: "smooth"});
      trigger("select", {key: near.key, row: hit.row});
    }},
    node("img", {src: thumb(hit), alt: hit.id, loading: "lazy"}),
    node("span", {class: "hit-text"},
      node("span", {class: "hit-label"}, hit.label ?? hit.id.split("/").pop()),
      node("span", {class: "hit-score", title: "cosine similarity"}, hit.score.toFixed(3))))));
  const bars = near.vote.slice(0, 6).map(([label, share]) => node("li", {},
    node("span", {class: "vote-label"}, label),
    node("span", {class: "vote-share"}, `${Math.round(100 * share)} %`),
    node("span", {class: "vote-bar", style: `--share: ${share}`})));
  const vote = bars.length ? [node("div", {class: "vote"}, node("h3", {}, "Their vote"),
    node("ol", {}, ...bars), node("p", {}, "Closer neighbors count more."))] : [];
  return [
    node("header", {}, node("h2", {id: "near-title"}, "Nearest neighbors"), node("p", {}, about)),
    node("div", {class: "near-layout"}, ...vote, node("ul", {class: "hits"}, ...cards)),
    ...(near.generated ? ownFolder(near.command) : []),
  ];
}

globalThis.lensParts = {brand, colors, status, picker, stage, neighbors};
const lensParts = globalThis.lensParts;
