"use strict";
// Draw figures where they are seen, with a label at each curve's end.
const SHOWN_LABELS = 24; // of a figure; with more of them none could be read
const COARSE = matchMedia("(pointer: coarse)").matches; // a finger that drags wants to scroll
const CONFIG = { displayModeBar: false, responsive: true, doubleClick: false, scrollZoom: false };
const LABEL_HEIGHT = 13;
const DRAWN = new Set();
const IN_VIEW = new Set();

function listFigures() {
  for (const id of Object.keys(FIGURES)) delete FIGURES[id];
  DATA.panels.forEach((panel) => { FIGURES[`panel-${panel.id}`] = () => stepsPanel(panel); });
  if (DATA.frontier) FIGURES.frontier = frontierFigure;
  if (DATA.calibration.length) FIGURES.calibration = calibrationFigure;
  if (DATA.displacement) Object.assign(FIGURES, { displacement: displacementFigure, lengths: lengthsFigure });
  if (DATA.terms.length) FIGURES.terms = termsFigure;
}
listFigures();

// labels beside the plot at the heights of their curves' ends, moved apart where they would overlap
function endLabels(labels, range, height, most) {
  const [low, high] = range;
  const known = labels.filter(({ y }) => y !== null && y >= Math.min(low, high) && y <= Math.max(low, high));
  if (known.length > SHOWN_LABELS || known.length * LABEL_HEIGHT > height) {
    known.sort((a, b) => DATA.groups[b.group].depth - DATA.groups[a.group].depth);
    known.length = Math.min(known.length, 2); // the two that lie on top
  }
  const at = ({ y }) => (height * (high - y)) / (high - low);
  const placed = known.map((label) => ({ ...label, pixel: at(label), wanted: at(label) })).sort((a, b) => a.pixel - b.pixel);
  for (let round = 0; round < 40; round += 1)
    for (let i = 1; i < placed.length; i += 1) {
      const missing = LABEL_HEIGHT - (placed[i].pixel - placed[i - 1].pixel);
      if (missing > 0) { placed[i].pixel += missing / 2; placed[i - 1].pixel -= missing / 2; }
    }
  placed.forEach((label, i) => { label.pixel = Math.max(label.pixel, i ? placed[i - 1].pixel + LABEL_HEIGHT : 0); });
  for (let i = placed.length - 1; i >= 0; i -= 1)
    placed[i].pixel = Math.min(placed[i].pixel, i + 1 < placed.length ? placed[i + 1].pixel - LABEL_HEIGHT : height);
  return placed.map(({ group, y, pixel, wanted }) => ({
    xref: "paper", x: 1, y, yref: "y", xanchor: "left", xshift: 5, yshift: wanted - pixel, showarrow: false,
    text: shortLabel(group, most), font: { size: 11, color: colourOf(group) }, captureevents: false,
  }));
}

function draw(plot) {
  const id = plot.dataset.figure;
  const { traces, layout, labels } = FIGURES[id]();
  const narrow = plot.clientWidth < 480;
  const most = narrow ? 12 : 20;
  const longest = Math.max(0, ...labels.map(({ group }) => Math.min(most, DATA.groups[group].label.length)));
  const margin = { l: 52, r: labels.length ? 14 + 6.6 * longest : 16, t: 10, b: 44, ...layout.margin };
  const height = layout.height || plot.clientHeight;
  plot.style.height = layout.height ? `${layout.height}px` : "";
  const zoom = ZOOM[id];
  if (zoom && zoom.x) { layout.xaxis.range = zoom.x; layout.yaxis.range = zoom.y; }
  const annotations = [...(layout.annotations || [])];
  if (labels.length && layout.yaxis.range)
    annotations.push(...endLabels(labels, layout.yaxis.range, height - margin.t - margin.b, most));
  const base = {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", showlegend: false, hovermode: "closest",
    dragmode: COARSE ? false : "zoom", font: { color: css("--ink"), size: 12, family: css("font-family") || undefined },
    hoverlabel: { bgcolor: css("--soft"), bordercolor: css("--line"), font: { color: css("--ink") }, align: "left" },
  };
  const whole = { ...base, ...layout, margin, annotations };
  if (!STATE.visible.size && id !== "terms")
    whole.annotations = [{ text: "no setting is switched on", showarrow: false, xref: "paper", yref: "paper", x: 0.5, y: 0.5 }];
  const first = !DRAWN.has(id);
  DRAWN.add(id);
  const done = Plotly.react(plot, traces, whole, CONFIG);
  if (first) follow(plot, id);
  return done;
}

// what the reader zooms by dragging: steps in all figures over steps, else the figure alone
function follow(plot, id) {
  plot.on("plotly_relayout", (change) => {
    const range = (name) =>
      change[`${name}.range`] ||
      (change[`${name}.range[0]`] === undefined ? null : [change[`${name}.range[0]`], change[`${name}.range[1]`]]);
    const [x, y] = [range("xaxis"), range("yaxis")];
    if (!x && !y) return;
    if (id.startsWith("panel-")) {
      if (y) ZOOM[id] = y;
      if (x) setSteps(x.map(Math.round));
      else draw(plot);
    } else {
      ZOOM[id] = { x: x || plot.layout.xaxis.range, y: y || plot.layout.yaxis.range };
    }
  });
  plot.on("plotly_doubleclick", () => resetZoom(id));
}

function setSteps(range) {
  STATE.steps = range && range[1] > range[0] ? range : null;
  byId("from").value = STATE.steps ? STATE.steps[0] : "";
  byId("to").value = STATE.steps ? STATE.steps[1] : "";
  redraw();
}

function resetZoom(id) {
  delete ZOOM[id];
  if (id.startsWith("panel-")) setSteps(null);
  else draw(byId(`plot-${id}`));
}

function redraw() {
  for (const plot of document.querySelectorAll(".plot")) {
    const { scale } = plot.closest(".figure").dataset;
    const hidden = (scale === "nats" || scale === "reward") && scale !== STATE.scale;
    plot.closest(".figure").hidden = hidden;
    if (IN_VIEW.has(plot) && !hidden) draw(plot);
    else if (DRAWN.delete(plot.dataset.figure)) Plotly.purge(plot); // drawn again when it comes into view
  }
}

const watcher = new IntersectionObserver(
  (entries) => {
    for (const { target, isIntersecting } of entries) {
      if (isIntersecting) IN_VIEW.add(target);
      else IN_VIEW.delete(target);
      if (isIntersecting && !DRAWN.has(target.dataset.figure)) draw(target);
    }
  },
  { rootMargin: "400px 0px" },
);
