"use strict";
// Follow the runs: ask the server what is new, and put it into the page without losing what the reader has chosen.
const EVERY = 2000; // milliseconds
const PROGRESS = byId("progress");
const SERVED = Object.fromEntries([...document.querySelectorAll("main > section")].map((section) => [section.id, section.outerHTML]));
const LIVE = { version: PROGRESS.dataset.version, tag: null };

async function followRuns() {
  try {
    const answer = await fetch("/state", LIVE.tag ? { headers: { "If-None-Match": LIVE.tag } } : {});
    if (answer.status === 200) {
      LIVE.tag = answer.headers.get("ETag");
      const state = await answer.json();
      showProgress(state);
      if (state.version !== LIVE.version) await takeVersion(state.version);
    } else if (answer.status !== 304) throw new Error(`status ${answer.status}`);
  } catch {
    LIVE.tag = null;
    setText(byId("live-said"), "The server does not answer: the page shows what was read last.");
  }
  setTimeout(followRuns, EVERY);
}

// the server's first word is its own name: of another server the document may be another one too
async function takeVersion(version) {
  if (version.split("-")[0] !== LIVE.version.split("-")[0]) return location.reload();
  const answer = await fetch("/update");
  if (!answer.ok) throw new Error(`status ${answer.status}`);
  const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
  try {
    takeDocument(fresh);
    LIVE.version = fresh.getElementById("progress").dataset.version;
  } catch (fault) {
    console.warn(fault);
    location.reload();
  }
  return undefined;
}

function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

function showProgress({ message, runs, more }) {
  setText(byId("live-said"), message);
  setText(byId("live-more"), more);
  byId("live-table").hidden = !runs.length;
  byId("live-runs").replaceChildren(...runs.map((run) => {
    const done = element("td");
    if (run.share !== null) {
      const filled = element("span");
      filled.style.width = `${100 * run.share}%`;
      done.append(element("span", { className: "bar", ariaHidden: "true" }, filled), ` ${Math.floor(100 * run.share)} %`);
    }
    const cells = [run.state, run.steps, null, run.left, run.error].map((text) => text === null ? done : element("td", { textContent: text }));
    return element("tr", {}, element("th", { scope: "row", textContent: run.name }), ...cells);
  }));
}

// ---- a new document in place of the old one

function takeDocument(fresh) {
  const before = { scales: verticalScales(), groups: DATA.groups, prompt: shownPrompt(), term: DATA.terms.length ? DATA.terms[STATE.term].group : null };
  const focused = focusedPlace();
  const data = JSON.parse(fresh.getElementById("data").textContent);
  for (const key of Object.keys(DATA)) delete DATA[key];
  Object.assign(DATA, data);
  keepChoices(before);
  for (const name of ["nav", "header .heading"]) {
    const [old, made] = [document, fresh].map((side) => side.querySelector(name));
    if (old.innerHTML !== made.innerHTML) old.replaceChildren(...made.childNodes);
  }
  document.title = fresh.title;
  listFigures();
  takeSections(fresh);
  drawLegend();
  if (DATA.samples) keepPrompt(before.prompt);
  if (byId("term-setting")) byId("term-setting").value = String(STATE.term);
  showGroups(STATE.visible);
  focusAgain(focused);
}

// A setting may be named anew, or stand elsewhere, when others come: it is known by its runs.
function keepChoices({ scales, groups, term }) {
  const known = new Map(groups.flatMap(({ runs }, group) => runs.map((run) => [run, group])));
  const formerly = DATA.groups.map(({ runs }) => [...new Set(runs.filter((run) => known.has(run)).map((run) => known.get(run)))]);
  const visible = formerly.map((old, group) => (old.length ? old.every((place) => STATE.visible.has(place)) : DATA.shown.includes(group)));
  STATE.visible = new Set(visible.flatMap((shown, group) => (shown ? [group] : [])));
  STATE.term = Math.max(0, DATA.terms.findIndex(({ group }) => term !== null && formerly[group].includes(term)));
  if (!STATE.chosen) STATE.logarithmic = byId("logarithmic").checked = DATA.logarithmic;
  for (const [id, scale] of Object.entries(verticalScales())) if (scales[id] !== scale) delete ZOOM[id]; // it meant other values
}

// where each figure turns logarithmic; false of a linear axis
function verticalScales() {
  const scale = ({ linear }) => STATE.logarithmic && linear;
  const scales = Object.fromEntries(DATA.panels.map((panel) => [`panel-${panel.id}`, scale(panel)]));
  return DATA.displacement ? { ...scales, displacement: scale(DATA.displacement) } : scales;
}

function takeSections(fresh) {
  const main = byId("main");
  const sections = [...fresh.querySelectorAll("main > section")];
  const ids = new Set(sections.map(({ id }) => id));
  for (const old of main.querySelectorAll(":scope > section")) if (!ids.has(old.id)) dropSection(old);
  let last = null;
  for (const section of sections) {
    const { id, outerHTML } = section;
    const old = byId(id);
    if (id !== PROGRESS.id && (!old || SERVED[id] !== outerHTML)) {
      SERVED[id] = outerHTML;
      const restore = old ? carryOver(old, section) : null;
      if (old) old.replaceWith(section);
      else if (last) last.after(section);
      else main.prepend(section);
      if (restore) restore();
      section.querySelectorAll(".plot").forEach((plot) => watcher.observe(plot));
    }
    last = byId(id);
  }
}

function dropSection(section) {
  delete SERVED[section.id];
  section.querySelectorAll(".plot").forEach(dropPlot);
  section.remove();
}

function dropPlot(plot) {
  watcher.unobserve(plot);
  IN_VIEW.delete(plot);
  if (DRAWN.delete(plot.dataset.figure)) Plotly.purge(plot);
}

// the drawn figures of a section, and what its reader has opened, scrolled, typed and sorted
function carryOver(old, section) {
  for (const plot of old.querySelectorAll(".plot")) {
    const place = section.querySelector(`#${CSS.escape(plot.id)}`);
    if (!place) dropPlot(plot);
    else {
      plot.setAttribute("aria-label", place.getAttribute("aria-label"));
      place.replaceWith(plot);
    }
  }
  const [opened, openable] = [old, section].map((side) => [...side.querySelectorAll("details")]);
  if (opened.length === openable.length) openable.forEach((details, i) => { details.open = opened[i].open; });
  for (const field of old.querySelectorAll("input")) section.querySelector(`#${field.id}`).value = field.value;
  const scrolled = [...old.querySelectorAll(".scroll")].map((part) => [part.getAttribute("aria-label"), part.scrollTop, part.scrollLeft]);
  const sorted = old.querySelector("#finals [aria-sort$='ending']");
  return () => {
    if (sorted) {
      const names = [...byId("finals").tHead.rows[0].cells].map((head) => head.textContent);
      const place = names.indexOf(sorted.textContent);
      if (place >= 0) sortTable(place, sorted.getAttribute("aria-sort"));
    }
    for (const part of section.querySelectorAll(".scroll")) {
      const found = scrolled.find(([name]) => name === part.getAttribute("aria-label"));
      if (found) [, part.scrollTop, part.scrollLeft] = found;
    }
  };
}

function shownPrompt() {
  const place = DATA.samples && byId("prompt").value;
  return place ? DATA.samples.prompts[Number(place)].prompt : null;
}

function keepPrompt(prompt) {
  drawPrompts();
  const place = DATA.samples.prompts.findIndex((entry) => entry.prompt === prompt);
  if ([...byId("prompt").options].some(({ value }) => value === String(place))) byId("prompt").value = String(place);
}

// where the keyboard is, as a place among its like of a section or of the list of settings
function focusedPlace() {
  const active = document.activeElement;
  const part = active && active.closest("main > section, nav, #legend");
  if (!part || part === active) return null;
  const selector = part.id ? `#${part.id}` : part.localName;
  return { selector, name: active.localName, place: [...part.querySelectorAll(active.localName)].indexOf(active), active };
}

function focusAgain(focused) {
  if (!focused || document.activeElement === focused.active) return;
  const part = document.querySelector(focused.selector);
  const again = part && part.querySelectorAll(focused.name)[focused.place];
  if (again) again.focus({ preventScroll: true });
}

setTimeout(followRuns);
