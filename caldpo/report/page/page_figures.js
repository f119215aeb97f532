"use strict";
// Figures: each is made of the page's data when it comes into view, and again when the reader changes something.
const FIGURES = {}; // by id: () => {traces, layout, labels}
const ZOOM = {}; // by id: ranges that the reader has drawn, of figures that are not over steps
const SHAPE_OF_LOG = (limit) => (value) =>
  value === null ? null : Math.sign(value) * Math.log10(1 + Math.abs(value) / limit);

const root = (value) => (value === null ? null : Math.sign(value) * Math.sqrt(Math.abs(value))); // KL may be estimated below 0

const shownEntries = (entries) => entries.filter((entry) => STATE.visible.has(entry.group));
const byDepth = (entries) =>
  [...entries].sort((a, b) => DATA.groups[a.group].depth - DATA.groups[b.group].depth);

function axis(title, more = {}) {
  const line = { gridcolor: css("--line"), zeroline: false, linecolor: css("--quiet"), automargin: true };
  return { ...line, title: { text: title, standoff: 8 }, ...more };
}

function ruler(axisName, value, dash) {
  const across = axisName === "x";
  const ends = across ? { x0: value, x1: value, y0: 0, y1: 1 } : { y0: value, y1: value, x0: 0, x1: 1 };
  const refs = across ? { xref: "x", yref: "paper" } : { xref: "paper", yref: "y" };
  return { type: "line", layer: "below", ...ends, ...refs, line: { color: css("--quiet"), width: 1.2, dash } };
}

// ticks at 1 and 3 times powers of ten of an axis that is linear around 0, those left out for which there is no room
function logarithmicTicks(limit, low, high) {
  const shape = SHAPE_OF_LOG(limit);
  const sizes = [];
  for (let power = 0; power < 12; power += 1) sizes.push(limit * 10 ** power, 3 * limit * 10 ** power);
  const values = [0, ...sizes.flatMap((size) => [size, -size])].filter((value) => shape(value) >= low && shape(value) <= high);
  const room = (high - low) / 9;
  const kept = [];
  for (const value of values) if (kept.every((other) => Math.abs(shape(other) - shape(value)) >= room)) kept.push(value);
  kept.sort((a, b) => a - b);
  return { tickmode: "array", tickvals: kept.map(shape), ticktext: kept.map(textNumber) };
}

// ticks at 0, and at 1, 2 and 5 times powers of ten of an axis of square roots, from the largest on while there is room
function squareRootTicks(low, high) {
  const sizes = [];
  for (let power = -6; power < 9; power += 1) sizes.push(...[1, 2, 5].map((digit) => digit * 10 ** power));
  const kept = [0];
  for (const value of sizes.reverse()) {
    const inside = root(value) >= low && root(value) <= high;
    if (inside && kept.every((other) => Math.abs(root(other) - root(value)) >= (high - low) / 14)) kept.push(value);
  }
  return { tickmode: "array", tickvals: kept.map(root), ticktext: kept.map(textNumber) };
}

function extent(lists) {
  let low = Infinity;
  let high = -Infinity;
  for (const list of lists)
    for (const value of list)
      if (value !== null && value !== undefined) {
        if (value < low) low = value;
        if (value > high) high = value;
      }
  return low <= high ? [low, high] : null;
}

function padded(range, share) {
  const width = range[1] - range[0] || Math.abs(range[1]) || 1;
  return [range[0] - share * width, range[1] + share * width];
}

// the area between low and high, an own one on each side of a gap
function bandTraces(curve, shape) {
  const parts = [[]];
  curve.x.forEach((step, i) => {
    if (curve.low[i] === null || curve.high[i] === null) parts.push([]);
    else parts[parts.length - 1].push(i);
  });
  const line = { width: 0, shape: "linear" };
  const style = { type: "scatter", mode: "lines", fill: "toself", hoverinfo: "skip", line };
  const bar = { ...style, fill: "none", line: { width: 6, color: withAlpha(colourOf(curve.group), 0.35) } };
  return parts.filter((part) => part.length).map((part) => part.length === 1 ? {
    ...bar, x: [curve.x[part[0]], curve.x[part[0]]], y: [curve.low[part[0]], curve.high[part[0]]].map(shape),
  } : {
    ...style,
    fillcolor: withAlpha(colourOf(curve.group), 0.16),
    x: [...part.map((i) => curve.x[i]), ...[...part].reverse().map((i) => curve.x[i])],
    y: [...part.map((i) => shape(curve.low[i])), ...[...part].reverse().map((i) => shape(curve.high[i]))],
  });
}

function lineTrace(entry, x, y, shape, hover) {
  const { label, dash, symbol, width } = DATA.groups[entry.group];
  const colour = colourOf(entry.group);
  return {
    type: "scatter",
    mode: "lines+markers",
    name: plain(label),
    x,
    y: y.map(shape),
    customdata: y,
    meta: { group: entry.group },
    line: { color: colour, dash, width },
    marker: { symbol, size: 7, color: colour, maxdisplayed: 6 },
    hovertemplate: `<b>${plain(label)}</b><br>${hover}<extra></extra>`,
  };
}

function stepsPanel(panel) {
  const logarithmic = STATE.logarithmic && panel.linear !== null;
  const shape = logarithmic ? SHAPE_OF_LOG(panel.linear) : (value) => value;
  const curves = byDepth(shownEntries(panel.curves));
  const within = ([from, to], list, curve) => list.filter((_, i) => curve.x[i] >= from && curve.x[i] <= to);
  const all = extent(curves.map((curve) => curve.x)) || [0, 1];
  const steps = STATE.steps || padded(all, 0.02);
  const lists = curves.flatMap((curve) =>
    [curve.y, ...(STATE.bands && curve.low ? [curve.low, curve.high] : [])].map((list) => within(steps, list, curve).map(shape)),
  );
  const range = ZOOM[`panel-${panel.id}`] || padded(extent([...lists, [shape(panel.neutral)]]), 0.06);
  const unit = logarithmic ? `${panel.unit}, logarithmic beyond ±${textNumber(panel.linear)}` : panel.unit;
  return {
    traces: [
      ...(STATE.bands ? curves.filter((curve) => curve.low).flatMap((curve) => bandTraces(curve, shape)) : []),
      ...curves.map((curve) => lineTrace(curve, curve.x, curve.y, shape, "step %{x}: %{customdata:.4~g}")),
    ],
    layout: {
      xaxis: axis("optimiser step", { range: steps }),
      yaxis: axis(unit, { range, ...(logarithmic ? logarithmicTicks(panel.linear, ...range) : {}) }),
      shapes: [ruler("y", shape(panel.neutral), "solid")],
    },
    labels: curves.map((curve) => {
      let last = curve.x.length - 1;
      while (last > 0 && (curve.x[last] > steps[1] || curve.y[last] === null)) last -= 1;
      return { group: curve.group, y: shape(curve.y[last]) };
    }),
  };
}

function frontierFigure() {
  const { points, reference, joined } = DATA.frontier;
  const shown = byDepth(shownEntries(points));
  const traces = [];
  for (const members of joined) {
    const ends = members.filter(([group]) => STATE.visible.has(group)).map(([group, beta]) => {
      const point = points.find((p) => p.group === group);
      return { x: root(point.kl[0]), y: point.reward[0], beta };
    });
    ends.sort((a, b) => a.x - b.x);
    if (ends.length > 1)
      traces.push({
        type: "scatter", mode: "lines+text", x: ends.map((e) => e.x), y: ends.map((e) => e.y),
        text: ends.map((e) => `β ${e.beta}`), textposition: "top left", textfont: { size: 10, color: css("--quiet") },
        line: { color: css("--quiet"), dash: "dash", width: 1.2 }, hoverinfo: "skip",
      });
  }
  for (const point of shown) {
    const { label, symbol } = DATA.groups[point.group];
    const colour = colourOf(point.group);
    const note = point.evaluated ? "" : "<br>as training logged it";
    if (point.path[0].length > 1)
      traces.push({
        type: "scatter", mode: "lines+markers", x: point.path[0].map(root), y: point.path[1], name: plain(label),
        customdata: point.path[0],
        line: { color: colour, width: 1 }, marker: { size: 4, color: colour }, opacity: 0.65,
        hovertemplate: `${plain(label)}, a checkpoint<br>KL %{customdata:.3~g}, reward %{y:.3~g}<extra></extra>`,
      });
    const bar = { type: "data", color: colour, thickness: 1, width: 4 };
    const [kl, sd] = point.kl;
    const across = { array: [root(kl + sd) - root(kl)], arrayminus: [root(kl) - root(kl - sd)], visible: sd !== null };
    traces.push({
      type: "scatter", mode: "markers", x: [root(kl)], y: [point.reward[0]], name: plain(label),
      meta: { group: point.group }, customdata: [kl], error_x: { ...bar, symmetric: false, ...across },
      error_y: { ...bar, array: [point.reward[1]], visible: point.reward[1] !== null }, marker: { symbol, size: 11, color: colour },
      hovertemplate: `<b>${plain(label)}</b><br>KL %{customdata:.3~g}, reward %{y:.3~g}${note}<extra></extra>`,
    });
  }
  const annotations = shown.length > 40 ? [] : shown.map((point) => ({
    x: root(point.kl[0]), y: point.reward[0], text: shortLabel(point.group, 26),
    showarrow: false, xanchor: "left", xshift: 9, yshift: 9, font: { size: 11, color: colourOf(point.group) },
  }));
  const shapes = reference === null ? [] : [ruler("y", reference, "dash")];
  if (reference !== null)
    annotations.push({
      xref: "paper", x: 1, y: reference, text: "reference", showarrow: false, xanchor: "right", yshift: 9,
      font: { size: 11, color: css("--quiet") },
    });
  const kls = extent([...shown.map(({ kl }) => [kl[0] - (kl[1] || 0), kl[0] + (kl[1] || 0)]), ...shown.map(({ path }) => path[0])]);
  const range = kls ? [root(Math.min(0, kls[0])), 1.1 * root(Math.max(0, kls[1]))] : [0, 1]; // with room for the labels
  const x = { range, ...squareRootTicks(...range) };
  return {
    traces,
    layout: { xaxis: axis("KL(policy || reference), nats, square-root axis", x), yaxis: axis("true reward"), shapes, annotations },
    labels: [],
  };
}

function calibrationFigure() {
  const curves = byDepth(shownEntries(DATA.calibration));
  const same = (value) => value;
  const size = (curve) => curve.share.map((share) => 5 + 18 * Math.sqrt(share));
  return {
    traces: curves.map((curve) => {
      const hover = "claimed %{x:.2f}, observed %{y:.2f}";
      const trace = lineTrace(curve, curve.claimed, curve.observed, same, hover);
      return { ...trace, marker: { ...trace.marker, size: size(curve), maxdisplayed: 0 }, cliponaxis: false };
    }),
    layout: {
      xaxis: axis("claimed probability; a larger marker has more pairs", { range: [0, 1] }),
      yaxis: axis("observed share", { range: [0, 1] }),
      shapes: [{ type: "line", x0: 0, y0: 0, x1: 1, y1: 1, layer: "below", line: { color: css("--quiet"), dash: "dash", width: 1.2 } }],
    },
    labels: curves.map((curve) => ({ group: curve.group, y: curve.observed[curve.observed.length - 1] })),
  };
}

function displacementFigure() {
  const { ranges, linear } = DATA.displacement;
  const shown = shownEntries(ranges);
  const shape = STATE.logarithmic && linear !== null ? SHAPE_OF_LOG(linear) : (value) => value;
  const order = [...new Set(shown.map((entry) => entry.group))];
  const values = extent(shown.map((entry) => entry.values.map(shape))) || [-1, 1];
  const range = padded([Math.min(0, values[0]), Math.max(0, values[1])], 0.04);
  const traces = shown.map((entry) => {
    const [low, first, middle, third, high] = entry.values.map(shape);
    const colour = colourOf(entry.group);
    const chosen = entry.side === "chosen";
    const { label } = DATA.groups[entry.group];
    return {
      type: "box", orientation: "h", name: `${plain(label)}, ${entry.side}`,
      y: [order.indexOf(entry.group) + (chosen ? -0.19 : 0.19)], q1: [first], median: [middle], q3: [third],
      lowerfence: [low], upperfence: [high], width: 0.3, line: { color: colour, width: 1.4 },
      fillcolor: withAlpha(colour, chosen ? 0.55 : 0), hoverinfo: "skip", meta: { group: entry.group },
    };
  });
  return {
    traces,
    layout: {
      xaxis: axis(shape(10) === 10 ? "log-ratio, nats" : `log-ratio, nats, logarithmic beyond ±${textNumber(linear)}`, {
        range, ...(shape(10) === 10 ? {} : logarithmicTicks(linear, ...range)),
      }),
      yaxis: axis("", {
        tickmode: "array", tickvals: order.map((_, i) => i), range: [order.length - 0.5, -0.5], gridcolor: "rgba(0,0,0,0)",
        ticktext: order.map((group) => shortLabel(group, 24)),
      }),
      shapes: [ruler("x", 0, "solid")],
      height: Math.max(320, 90 + 34 * order.length),
      margin: { l: 10, r: 16, t: 10, b: 44 },
    },
    labels: [],
  };
}

function lengthsFigure() {
  const curves = byDepth(shownEntries(DATA.displacement.lengths));
  const hover = "%{x:.0f} tokens: %{y:.3f}";
  const top = extent(curves.map((curve) => curve.y));
  return {
    traces: curves.map((curve) => lineTrace(curve, curve.x, curve.y, (value) => value, hover)),
    layout: {
      xaxis: axis("mean length of the two, tokens"),
      yaxis: axis("share of pairs", { range: [0, top && top[1] > 0 ? 1.08 * top[1] : 1] }),
    },
    labels: curves.map((curve) => ({ group: curve.group, y: curve.y[curve.y.length - 1] })),
  };
}

const TERM_LOOKS = [["#3b6fb6", ""], ["#d55e00", "/"], ["#4e9a70", "."], ["#df79e1", "x"], ["#79290b", "-"]];

function termsFigure() {
  const entry = DATA.terms[STATE.term];
  const traces = Object.entries(entry.shares).map(([name, share], i) => {
    const [colour, pattern] = TERM_LOOKS[i % TERM_LOOKS.length];
    return {
      type: "scatter", mode: "lines", stackgroup: "terms", name: plain(name), x: entry.x, y: share,
      line: { color: colour, width: 1 }, fillcolor: withAlpha(colour, 0.6),
      ...(pattern ? { fillpattern: { shape: pattern, fgcolor: css("--ink"), fgopacity: 0.35, fillmode: "overlay", size: 7 } } : {}),
      hovertemplate: `${plain(name)}<br>step %{x}: %{y:.3f}<extra></extra>`,
    };
  });
  const legend = { orientation: "h", y: 1.02, yanchor: "bottom", x: 0 };
  return {
    traces,
    layout: {
      xaxis: axis("optimiser step", STATE.steps ? { range: STATE.steps } : {}),
      yaxis: axis("share of the loss", { range: [0, 1] }), showlegend: true, legend, margin: { l: 52, r: 16, t: 40, b: 44 },
    },
    labels: [],
  };
}
