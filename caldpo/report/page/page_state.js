"use strict";
// What the page knows, and what its reader has chosen. Everything from a run's folder is text here and stays text.
const DATA = JSON.parse(document.getElementById("data").textContent);
const STATE = {
  visible: new Set(DATA.shown),
  scale: "nats",
  logarithmic: DATA.logarithmic,
  chosen: false, // whether the reader has chosen the axis
  bands: true,
  steps: null, // [from, to] of the figures over steps
  theme: "automatic",
  term: 0,
};
const byId = (id) => document.getElementById(id);
const isDark = () => document.documentElement.dataset.theme === "dark";
const colourOf = (group) => DATA.groups[group].colours[isDark() ? 1 : 0];
const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

// plotly reads a few tags, entities and %{...} in texts: of a name they are characters like others
function plain(text) {
  const escaped = text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
  return escaped.replace(/[%$]/g, (c) => `&#${c.charCodeAt(0)};`);
}

function short(text, most) {
  return text.length > most ? `${text.slice(0, most - 1)}…` : text;
}

// of a long label its ends: the loss, and the value that tells it from its neighbours
function shortLabel(group, most) {
  const { label } = DATA.groups[group];
  const tail = Math.floor(most / 3);
  return plain(label.length > most ? `${label.slice(0, most - tail - 1)}…${label.slice(-tail)}` : label);
}

function textNumber(value) {
  if (value === null || value === undefined) return "-";
  const size = Math.abs(value);
  return size !== 0 && (size < 1e-4 || size >= 1e6) ? value.toExponential(2) : String(Number(value.toPrecision(4)));
}

function withAlpha(hex, alpha) {
  const [r, g, b] = [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
  return `rgba(${r},${g},${b},${alpha})`;
}

function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  Object.assign(made, properties);
  made.append(...children);
  return made;
}

const SHAPES = {
  circle: "M0-4a4 4 0 1 1 0 8a4 4 0 1 1 0-8z",
  square: "M-3.5-3.5h7v7h-7z",
  diamond: "M0-5L4 0L0 5L-4 0z",
  "triangle-up": "M0-4.5L4.5 3.5H-4.5z",
  "triangle-down": "M0 4.5L4.5-3.5H-4.5z",
  "triangle-left": "M-4.5 0L3.5-4.5V4.5z",
  "triangle-right": "M4.5 0L-3.5-4.5V4.5z",
  cross: "M-1.6-4.5h3.2v2.9h2.9v3.2h-2.9v2.9h-3.2v-2.9h-2.9v-3.2h2.9z",
  x: "M-4-2.2L-2.2-4L0-1.8L2.2-4L4-2.2L1.8 0L4 2.2L2.2 4L0 1.8L-2.2 4L-4 2.2L-1.8 0z",
  star: "M0-5L1.3-1.6L4.8-1.5L2-0.7L3 4L0 1.6L-3 4L-2 0.7L-4.8-1.5L-1.3-1.6z",
};

// the line and marker of a setting, as figures draw it
function swatch(group) {
  const space = "http://www.w3.org/2000/svg";
  const svg = document.createElementNS(space, "svg");
  const { dash, symbol } = DATA.groups[group];
  for (const [name, value] of Object.entries({ width: 54, height: 12, viewBox: "-27 -6 54 12", "aria-hidden": "true" }))
    svg.setAttribute(name, value);
  const line = document.createElementNS(space, "path");
  line.setAttribute("d", "M-27 0H27");
  line.setAttribute("stroke", colourOf(group));
  line.setAttribute("stroke-width", "2");
  if (dash !== "solid") line.setAttribute("stroke-dasharray", dash.replace(/px/g, ""));
  const mark = document.createElementNS(space, "path");
  mark.setAttribute("d", SHAPES[symbol]);
  mark.setAttribute("fill", colourOf(group));
  svg.append(line, mark);
  return svg;
}

function say(text) {
  byId("said").textContent = text;
}
