"use strict";
// What the reader can change: settings, scales, steps, theme; sorting, filtering and copying.

// ---- settings

const LEGEND = byId("legend");

function drawLegend() {
  LEGEND.replaceChildren(...DATA.groups.map(({ label, state }, group) => {
    const pressed = STATE.visible.has(group);
    const button = element("button", { type: "button", className: "setting" }, swatch(group), element("span", { textContent: label }),
      ...(state ? [element("span", { className: "note state", textContent: state })] : []));
    button.setAttribute("aria-pressed", pressed);
    button.dataset.group = group;
    return button;
  }));
  byId("pair").hidden = pair().length < 2;
  find();
}

function showGroups(groups) {
  STATE.visible = new Set(groups);
  for (const button of LEGEND.children)
    button.setAttribute("aria-pressed", STATE.visible.has(Number(button.dataset.group)));
  byId("count").textContent = `${STATE.visible.size} of ${DATA.groups.length}`;
  redraw();
  if (DATA.samples) drawAnswers();
}

function find() {
  const sought = byId("find").value.trim().toLowerCase();
  for (const button of LEGEND.children) button.hidden = !button.textContent.toLowerCase().includes(sought);
}

// the settings that are found, so that "All" and "None" act on what the list shows
const found = () => [...LEGEND.children].filter((button) => !button.hidden).map((button) => Number(button.dataset.group));

LEGEND.addEventListener("click", ({ target }) => {
  const button = target.closest("button");
  if (!button) return;
  const group = Number(button.dataset.group);
  const groups = new Set(STATE.visible);
  if (!groups.delete(group)) groups.add(group);
  showGroups(groups);
});
byId("find").addEventListener("input", find);
byId("all").addEventListener("click", () => showGroups([...STATE.visible, ...found()]));
byId("none").addEventListener("click", () => {
  const left = new Set(found());
  showGroups([...STATE.visible].filter((group) => !left.has(group)));
});
const pair = () => DATA.groups.map((_, group) => group).filter((group) => DATA.groups[group].on_top);
byId("pair").addEventListener("click", () => showGroups(pair()));

// ---- scales and steps

for (const radio of document.getElementsByName("scale"))
  radio.addEventListener("change", () => { STATE.scale = radio.value; clearPanels(); });
byId("logarithmic").checked = STATE.logarithmic;
byId("logarithmic").addEventListener("change", ({ target }) => { STATE.logarithmic = target.checked; STATE.chosen = true; clearPanels(); });
byId("bands").addEventListener("change", ({ target }) => { STATE.bands = target.checked; redraw(); });

function clearPanels() {
  for (const id of Object.keys(ZOOM)) if (id.startsWith("panel-") || id === "displacement") delete ZOOM[id];
  redraw();
}

function typedSteps() {
  const [from, to] = [byId("from"), byId("to")].map(({ value }) => (value === "" ? null : Number(value)));
  if (from === null && to === null) return setSteps(null);
  const last = extent(DATA.panels.flatMap((panel) => panel.curves.map((curve) => curve.x))) || [0, 1];
  STATE.steps = [from === null ? last[0] : from, to === null ? last[1] : to];
  if (STATE.steps[0] >= STATE.steps[1]) STATE.steps = null; // still being typed
  return redraw();
}

for (const id of ["from", "to"]) byId(id).addEventListener("change", typedSteps);
byId("all-steps").addEventListener("click", () => setSteps(null));

async function save(id) {
  const plot = byId(`plot-${id}`);
  await draw(plot);
  await Plotly.downloadImage(plot, { format: "png", scale: 2, filename: id, width: plot.clientWidth, height: plot.clientHeight });
}

// ---- what stands in the sections, which may be replaced while the page is open

const PRESSED = {
  "[data-reset]": (button) => resetZoom(button.dataset.reset),
  "[data-save]": (button) => save(button.dataset.save),
  "button.copy": (button) => copyCommand(button),
  "#finals thead button": (button) => sortBy(button.closest("th").cellIndex),
  "#prompt-before": () => movePrompt(-1),
  "#prompt-next": () => movePrompt(1),
};
document.addEventListener("click", ({ target }) => {
  for (const [selector, act] of Object.entries(PRESSED)) {
    const button = target.closest(selector);
    if (button) act(button);
  }
});
document.addEventListener("change", ({ target }) => {
  if (target.id === "term-setting") { STATE.term = Number(target.value); redraw(); }
  if (target.id === "prompt") drawAnswers();
});
document.addEventListener("input", ({ target }) => { if (target.id === "prompt-filter") drawPrompts(); });

// ---- theme: as the system has it, or as the reader wants it

const DARK = matchMedia("(prefers-color-scheme: dark)");
const THEMES = ["automatic", "light", "dark"];

function setTheme(theme) {
  STATE.theme = theme;
  const dark = theme === "dark" || (theme === "automatic" && DARK.matches);
  document.documentElement.dataset.theme = dark ? "dark" : "light";
  byId("theme").textContent = `Theme: ${theme}`;
  drawLegend();
  showGroups(STATE.visible);
}

byId("theme").addEventListener("click", () => {
  const next = THEMES[(THEMES.indexOf(STATE.theme) + 1) % THEMES.length];
  try { localStorage.setItem("caldpo-theme", next); } catch { /* a page that may keep nothing */ }
  setTheme(next);
});
DARK.addEventListener("change", () => { if (STATE.theme === "automatic") setTheme("automatic"); });

let beforePrinting = null;
addEventListener("beforeprint", () => {
  beforePrinting = STATE.theme;
  setTheme("light");
  for (const plot of document.querySelectorAll(".plot")) if (!plot.closest(".figure").hidden) draw(plot);
});
addEventListener("afterprint", () => setTheme(beforePrinting || "automatic"));

// ---- sorting

function sortBy(place) {
  const head = byId("finals").tHead.rows[0].cells[place];
  const direction = head.getAttribute("aria-sort") === "descending" ? "ascending" : "descending";
  sortTable(place, direction);
  say(`sorted by ${head.querySelector("button").textContent}, ${direction}`);
}

function sortTable(place, direction) {
  const table = byId("finals");
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, i) => head.setAttribute("aria-sort", i === place ? direction : "none"));
  const sign = direction === "ascending" ? 1 : -1;
  const value = (row) => row.cells[place].dataset.value;
  const compare = (a, b) => {
    if (value(a) === "" || value(b) === "") return (value(a) === "") - (value(b) === ""); // unknown ones last
    return sign * (place === 0 ? value(a).localeCompare(value(b), undefined, { numeric: true }) : Number(value(a)) - Number(value(b)));
  };
  table.tBodies[0].append(...[...table.tBodies[0].rows].sort(compare));
}

// ---- samples

function drawPrompts() {
  const sought = byId("prompt-filter").value.trim().toLowerCase();
  const { prompts } = DATA.samples;
  const places = prompts.map((_, i) => i).filter((i) => prompts[i].prompt.toLowerCase().includes(sought));
  const select = byId("prompt");
  const before = select.value;
  select.replaceChildren(...places.map((i) =>
    element("option", { value: String(i), textContent: `${i + 1}. ${short(prompts[i].prompt.replace(/\s+/g, " "), 90)}` })));
  if (places.includes(Number(before)) && before !== "") select.value = before;
  byId("prompt-count").textContent = `${places.length} of ${prompts.length} prompts`;
  drawAnswers();
}

function card(answer) {
  const { group } = answer;
  const known = typeof group === "number";
  const source = known ? DATA.samples.sources.find((entry) => entry.group === group) : null;
  const name = known ? DATA.groups[group].label : group === null ? "reference" : "chosen (data)";
  const where = source && [source.seed !== null && `seed ${source.seed}`, source.step !== null && `step ${source.step}`].filter(Boolean).join(", ");
  const measured = [["true reward", answer.reward], ["log-ratio", answer.log_ratio]].filter(([, value]) => value !== null);
  const figures = measured.map(([what, value]) => `${what} ${textNumber(value)}`).join(" · ");
  const title = element("h3", {}, ...(known ? [swatch(group)] : []), element("span", { textContent: name }));
  const text = element("p", { textContent: answer.text || "(empty)", tabIndex: 0 });
  const made = element("li", { className: "card" }, title, element("span", { className: "note", textContent: figures }), text);
  if (where) made.append(element("span", { className: "note", textContent: where }));
  return made;
}

function drawAnswers() {
  const place = byId("prompt").value;
  const answers = byId("answers");
  if (place === "") return answers.replaceChildren(element("p", { textContent: "No prompt has this text." }));
  const { prompt, answers: all } = DATA.samples.prompts[Number(place)];
  const rank = ({ group }) => (group === "chosen" ? -2 : group === null ? -1 : group);
  const shown = all.filter(({ group }) => typeof group !== "number" || STATE.visible.has(group)).sort((a, b) => rank(a) - rank(b));
  return answers.replaceChildren(
    element("p", { className: "prompt", textContent: prompt }),
    element("ul", { className: "cards" }, ...shown.map(card)),
  );
}

function movePrompt(by) {
  const select = byId("prompt");
  if (!select.length) return;
  select.selectedIndex = (select.selectedIndex + by + select.length) % select.length;
  drawAnswers();
}

// ---- copying

async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const area = element("textarea", { value: text }); // where the clipboard is not to be had
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
}

async function copyCommand(button) {
  await copy(button.closest(".command").querySelector("code").textContent);
  say("copied");
  button.classList.add("done");
  setTimeout(() => button.classList.remove("done"), 1500);
}

// ---- begin

let theme = "automatic";
try { theme = localStorage.getItem("caldpo-theme") || theme; } catch { /* as above */ }
if (matchMedia("(max-width: 900px)").matches) byId("controls").open = false;
if (DATA.samples) drawPrompts();
setTheme(THEMES.includes(theme) ? theme : "automatic");
document.querySelectorAll(".plot").forEach((plot) => watcher.observe(plot));
