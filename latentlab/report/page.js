"use strict";
// Every text of a run goes through textContent or an attribute's value, never through HTML.

const data = JSON.parse(document.getElementById("data").textContent);
const dark = matchMedia("(prefers-color-scheme: dark)"), print = matchMedia("print");
const redraws = [];
const SVG = "http://www.w3.org/2000/svg";

function set(node, properties) {
  for (const [name, value] of Object.entries(properties)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== false && value != null) node.setAttribute(name, value);
  }
  return node;
}
function el(tag, properties = {}, ...children) {
  const node = set(document.createElement(tag), properties);
  node.append(...children.filter((child) => child != null));
  return node;
}
function vector(tag, properties = {}, ...children) {
  const node = set(document.createElementNS(SVG, tag), properties);
  node.append(...children.filter((child) => child != null));
  return node;
}
const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
const words = (name) => name.replaceAll("_", " ");
const percent = (value, digits = 0) => `${(100 * value).toFixed(digits)} %`;
const significant = (value, digits = 4) =>
  Number.isFinite(value) ? Number(value.toPrecision(digits)).toLocaleString("en", { maximumSignificantDigits: digits }) : "–";
function signed(value, digits = 0) {
  const size = Math.abs(value).toFixed(digits);
  return `${Number(size) === 0 ? "" : value > 0 ? "+" : "−"}${size}`;
}

// Pictures: many of one size in one file
class Sprite {
  constructor({ uri, columns, width, height }) {
    Object.assign(this, { columns, width, height, image: new Image() });
    this.ready = new Promise((resolve) => { this.image.onload = resolve; });
    this.image.src = uri;
  }
  async draw(canvas, index) {
    canvas.dataset.index = index;
    await this.ready;
    if (canvas.dataset.index !== String(index)) return; // another one was asked for meanwhile
    Object.assign(canvas, { width: this.width, height: this.height });
    const x = (index % this.columns) * this.width, y = Math.floor(index / this.columns) * this.height;
    canvas.getContext("2d").drawImage(this.image, x, y, this.width, this.height, 0, 0, this.width, this.height);
  }
  async pixels(index) {
    const canvas = el("canvas");
    const ctx = canvas.getContext("2d", { willReadFrequently: true });
    await this.draw(canvas, index);
    return ctx.getImageData(0, 0, this.width, this.height);
  }
}
const sprites = new Map();
function sprite(made) {
  if (!sprites.has(made)) sprites.set(made, new Sprite(made));
  return sprites.get(made);
}
function picture(name, className) {
  const canvas = el("canvas", { class: className, role: "img", "aria-label": name, width: 1, height: 1 });
  return { canvas, figure: el("figure", {}, canvas, el("figcaption", {}, name)) };
}
function clear(canvas) {
  canvas.dataset.index = "";
  canvas.getContext("2d").clearRect(0, 0, canvas.width, canvas.height);
}

// Controls, all of them the browser's own
let numbered = 0;
function slider(label, count, start, change, word) {
  const id = `slider${numbered++}`;
  const told = el("output", { for: id });
  const input = el("input", { id, type: "range", min: 0, max: count - 1, step: 1, value: start });
  const show = () => {
    told.textContent = word(Number(input.value));
    input.setAttribute("aria-valuetext", told.textContent);
  };
  input.addEventListener("input", () => { show(); change(Number(input.value)); });
  show();
  const box = el("div", { class: "slider" }, el("label", { for: id }, `${label}: `), told, input);
  return { box };
}
function select(label, names, change) {
  const input = el("select", { onchange: () => change(input.value) });
  const fill = (options) => input.replaceChildren(...options.map(([value, text]) => el("option", { value }, text)));
  fill(names);
  return { box: el("label", {}, label, input), fill };
}
function choice(label, items, change, chosen = 0) {
  const name = `choice${numbered++}`;
  const made = items.map((shown, index) => {
    const input = el("input", { type: "radio", name, value: index, checked: index === chosen, onchange: () => change(index) });
    if (shown instanceof Element) input.setAttribute("aria-label", shown.getAttribute("aria-label"));
    return el("label", {}, input, shown instanceof Element ? shown : el("span", {}, shown));
  });
  return el("fieldset", {}, el("legend", {}, label), el("div", { class: "choices" }, ...made));
}
function table(className, head, rows) {
  const cells = (row, tag) => row.map((cell, index) => {
    const properties = tag === "th" ? { scope: "col" } : index ? {} : { scope: "row" };
    return cell === "" ? el("td") : el(tag === "th" || !index ? "th" : "td", properties, cell); // a header is not empty
  });
  return el("div", { class: "scroll" }, el("table", { class: className },
    head && el("thead", {}, el("tr", {}, ...cells(head, "th"))),
    el("tbody", {}, ...rows.map((row) => el("tr", {}, ...cells(row, "td"))))));
}

// A chart of curves over one axis, with a marker that follows a slider
function chart({ label, x, xLabel, yLabel, top = 1, curves, band, flip, logarithmic = false }) {
  const W = 460, H = 250, L = 46, R = 12, T = 22, B = 42;
  const least = x.find((value) => value > 0) ?? 1, place = logarithmic ? (value) => Math.log1p(value / least) : (value) => value;
  const low = place(x[0]), high = place(x[x.length - 1]);
  const px = (value) => L + ((place(value) - low) / (high - low || 1)) * (W - L - R);
  const py = (value) => T + (1 - value / top) * (H - T - B);
  const line = (values) => values.map((value, index) => `${index ? "L" : "M"}${px(x[index])},${py(value)}`).join("");
  const parts = [];
  for (const share of [0, 0.25, 0.5, 0.75, 1]) {
    parts.push(vector("path", { class: "grid", d: `M${L},${py(share * top)}H${W - R}` }),
      vector("text", { x: L - 6, y: py(share * top) + 4, "text-anchor": "end" }, percent(share * top)));
  }
  const ticks = logarithmic ? x : x.filter((_, index) => x.length <= 9 || index % Math.ceil(x.length / 8) === 0 || index === x.length - 1);
  let last = -Infinity;
  for (const value of ticks) {
    if (px(value) - last < 34) continue;
    last = px(value);
    parts.push(vector("text", { x: px(value), y: H - B + 16, "text-anchor": "middle" }, significant(value, 3)));
  }
  parts.push(vector("text", { x: (L + W - R) / 2, y: H - 6, "text-anchor": "middle" }, xLabel),
    vector("text", { x: L, y: 12 }, yLabel));
  if (band) {
    const back = band.high.map((value, index) => `L${px(x[index])},${py(value)}`).reverse().join("");
    parts.push(vector("path", { d: `${line(band.low)}${back}Z`, fill: "var(--blue)", opacity: 0.18 }));
  }
  if (flip != null) {
    parts.push(vector("path", { d: `M${px(flip)},${T}V${H - B}`, stroke: "var(--ink)", "stroke-dasharray": "4 4" }),
      vector("text", { x: px(flip) + (px(flip) > W / 2 ? -5 : 5), y: T + 12, "text-anchor": px(flip) > W / 2 ? "end" : "start" }, "class flips"));
  }
  curves.forEach(({ values, hue, dash }) => parts.push(vector("path",
    { d: line(values), fill: "none", stroke: `var(--${hue})`, "stroke-width": 2.5, "stroke-dasharray": dash })));
  const rule = vector("path", { class: "axis" });
  const dots = curves.map(({ hue }) => vector("circle", { r: 5.5, fill: `var(--${hue})`, stroke: "var(--paper)", "stroke-width": 2 }));
  const node = vector("svg", { viewBox: `0 0 ${W} ${H}`, role: "img", "aria-label": label, width: W }, ...parts, rule, ...dots);
  const legend = curves.length < 2 ? null : el("p", { class: "soft" }, ...curves.map(({ name, hue, dash }, index) =>
    el("span", {}, index ? "   " : "", vectorKey(hue, dash), ` ${name}`)));
  return {
    node: el("figure", {}, node, legend),
    mark(index) {
      node.dataset.marked = index;
      rule.setAttribute("d", `M${px(x[index])},${T}V${H - B}`);
      dots.forEach((dot, curve) => set(dot, { cx: px(x[index]), cy: py(curves[curve].values[index]) }));
    },
  };
}
function vectorKey(hue, dash) {
  const key = vector("svg", { width: 28, height: 10, "aria-hidden": "true" },
    vector("path", { d: "M0,5H28", stroke: `var(--${hue})`, "stroke-width": 3, "stroke-dasharray": dash }));
  key.style.display = "inline-block";
  return key;
}

// How a run was made, and its files
function copyButton(text) {
  const button = el("button", { type: "button", onclick: async () => {
    try {
      await navigator.clipboard.writeText(text);
    } catch { // where the page may not use the clipboard
      const area = el("textarea", {}, text);
      document.body.append(area);
      area.select();
      document.execCommand("copy");
      area.remove();
    }
    button.textContent = "copied";
    setTimeout(() => { button.textContent = "copy the command that repeats it"; }, 2000);
  } }, "copy the command that repeats it");
  return button;
}
function howItWasMade({ command, parts, files }) {
  return [
    el("pre", {}, el("code", {}, command)),
    el("p", {}, copyButton(command)),
    el("div", { class: "parts" }, ...parts.map(({ name, facts, config }) => el("div", {}, el("h3", {}, name), table("texts", null, facts),
      el("details", {}, el("summary", {}, "configuration"), table("texts", null, config))))),
    el("details", {}, el("summary", {}, `${files.length} files`), el("ul", {}, ...files.map(({ href, name, size }) =>
      el("li", {}, el("a", { href }, name), ` ${size}`)))),
  ];
}

// What shows a section, by its key: the experiments' own scripts, which come after this one, add theirs
const sectionMakers = { made: howItWasMade };

function showPage() {
  document.title = `latentlab: ${data.run}`;
  document.getElementById("run").textContent = data.run;
  const findings = Object.entries(data.sections).filter(([, part]) => part.finding?.number);
  if (findings.length) document.querySelector("main").append(el("div", { class: "findings" }, ...findings.map(([id, { finding }]) =>
    el("a", { href: `#${id}` }, el("strong", {}, finding.number), " ", finding.text))));
  for (const [id, part] of Object.entries(data.sections)) {
    document.querySelector("nav").append(el("a", { href: `#${id}` }, part.title));
    document.querySelector("main").append(el("section", { id, "aria-labelledby": `${id}-title` }, el("h2", { id: `${id}-title` }, part.title),
      ...(part.missing ? [el("p", { class: "soft" }, `${part.missing} `, el("code", {}, part.command))] : sectionMakers[id](part)),
      part.figures?.length ? el("p", { class: "soft" }, "Figures: ", ...part.figures.flatMap(({ href, name }, index) => [index ? ", " : "", el("a", { href }, name)])) : null));
  }
  const redraw = () => redraws.forEach((one) => one());
  redraw();
  for (const query of [dark, print]) query.addEventListener("change", redraw);
}
document.addEventListener("DOMContentLoaded", showPage);
