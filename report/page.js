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
const signed = (value, digits) => `${value > 0 ? "+" : value < 0 ? "−" : ""}${Math.abs(value).toFixed(digits ?? 0)}`;

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
function choice(label, items, change) {
  const name = `choice${numbered++}`;
  const made = items.map((shown, index) => {
    const input = el("input", { type: "radio", name, value: index, checked: index === 0, onchange: () => change(index) });
    if (shown instanceof Element) input.setAttribute("aria-label", shown.getAttribute("aria-label"));
    return el("label", {}, input, shown instanceof Element ? shown : el("span", {}, shown));
  });
  return el("fieldset", {}, el("legend", {}, label), el("div", { class: "choices" }, ...made));
}
function table(className, head, rows) {
  const cells = (row, tag) => row.map((cell, index) => {
    const properties = tag === "th" ? { scope: "col" } : index ? {} : { scope: "row" };
    return el(tag === "th" || !index ? "th" : "td", properties, cell);
  });
  return el("div", { class: "scroll" }, el("table", { class: className },
    head && el("thead", {}, el("tr", {}, ...cells(head, "th"))),
    el("tbody", {}, ...rows.map((row) => el("tr", {}, ...cells(row, "td"))))));
}

// A chart of curves over one axis, with a marker that follows a slider
function chart({ label, x, xLabel, yLabel, top = 1, curves, band, flip }) {
  const W = 460, H = 250, L = 46, R = 12, T = 22, B = 42;
  const low = x[0], high = x[x.length - 1];
  const px = (value) => L + ((value - low) / (high - low || 1)) * (W - L - R);
  const py = (value) => T + (1 - value / top) * (H - T - B);
  const line = (values) => values.map((value, index) => `${index ? "L" : "M"}${px(x[index])},${py(value)}`).join("");
  const parts = [];
  for (const share of [0, 0.25, 0.5, 0.75, 1]) {
    parts.push(vector("path", { class: "grid", d: `M${L},${py(share * top)}H${W - R}` }),
      vector("text", { x: L - 6, y: py(share * top) + 4, "text-anchor": "end" }, percent(share * top)));
  }
  const ticks = x.filter((_, index) => x.length <= 9 || index % Math.ceil(x.length / 8) === 0 || index === x.length - 1);
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

// 1. Latent space
const DIGITS = {
  light: ["#332288", "#0077bb", "#117733", "#7a6a00", "#cc3311", "#aa3377", "#5a5a5a", "#994f00", "#00788a", "#882255"],
  dark: ["#a99bff", "#66b8ff", "#62d089", "#ddcc77", "#ff8f78", "#ff9bd0", "#c0c0c0", "#ffb066", "#55d6e0", "#e58fb5"],
};

const hues = () => DIGITS[dark.matches && !print.matches ? "dark" : "light"];

class Plane {
  constructor(made, shared) {
    Object.assign(this, { made, shared, cursor: null, view: made.extent });
    this.canvas = el("canvas", {
      class: "plane", tabindex: 0, role: "img", "aria-label": `${made.name}: latent plane of ${shared.labels.length} digits. `
        + "Arrow keys move over it, Enter chooses the nearest digit.",
    });
    this.decoded = picture(`decoded here`, "tile");
    this.told = el("output", {}, "–");
    this.node = el("figure", {}, el("h3", {}, made.name), this.canvas,
      el("div", { class: "row" }, this.decoded.figure, el("p", { class: "field" }, el("span", { class: "soft" }, "z ="), this.told)));
    this.canvas.addEventListener("pointermove", (event) => this.move(this.at(event)));
    this.canvas.addEventListener("click", (event) => { this.move(this.at(event)); shared.choose(this.nearest()); });
    this.canvas.addEventListener("keydown", (event) => this.key(event));
    new ResizeObserver(() => this.draw()).observe(this.canvas);
  }
  at(event) {
    const box = this.canvas.getBoundingClientRect();
    const along = (value, size) => (value / size) * 2 - 1;
    return [along(event.clientX - box.left, box.width) * this.view, -along(event.clientY - box.top, box.height) * this.view];
  }
  key(event) {
    const step = this.view / 20;
    const moves = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, step], ArrowDown: [0, -step] };
    if (event.key in moves) {
      const [x, y] = this.cursor ?? [0, 0];
      const within = (value) => Math.max(-this.view, Math.min(this.view, value));
      this.move([within(x + moves[event.key][0]), within(y + moves[event.key][1])]);
    } else if (event.key === "Home") this.move([0, 0]);
    else if (event.key === "Enter" || event.key === " ") this.shared.choose(this.nearest());
    else return;
    event.preventDefault();
  }
  move(to) {
    this.cursor = to;
    this.told.textContent = `(${signed(to[0], 2)}, ${signed(to[1], 2)})`;
    const { extent, side, plane } = this.made;
    const cell = (value) => Math.floor(((value / extent + 1) / 2) * side);
    const [column, row] = [cell(to[0]), cell(-to[1])].map((value) => (Math.abs(value - side) < 1 ? side - 1 : value));
    if (column >= 0 && column < side && row >= 0 && row < side) sprite(plane).draw(this.decoded.canvas, row * side + column);
    else clear(this.decoded.canvas);
    this.draw();
  }
  nearest() {
    const [x, y] = this.cursor ?? [0, 0], points = this.made.points;
    let best = 0, least = Infinity;
    for (let index = 0; index < points.length / 2; index++) {
      const far = (points[2 * index] - x) ** 2 + (points[2 * index + 1] - y) ** 2;
      if (far < least && !this.shared.faded(index)) [best, least] = [index, far];
    }
    return best;
  }
  draw() {
    const { shared, made } = this, ratio = devicePixelRatio || 1, size = this.canvas.clientWidth;
    if (!size) return;
    const ctx = this.canvas.getContext("2d"), pixels = Math.round(size * ratio);
    if (this.canvas.width !== pixels) this.canvas.width = this.canvas.height = pixels;
    ctx.setTransform(ratio, 0, 0, ratio, 0, 0);
    ctx.clearRect(0, 0, size, size);
    const px = (value) => (value / this.view + 1) / 2 * size, py = (value) => px(-value);
    ctx.strokeStyle = ctx.fillStyle = colour("soft");
    ctx.lineWidth = 1;
    ctx.font = "11px system-ui, sans-serif";
    ctx.globalAlpha = 0.6;
    for (const radius of [1, 2, 3]) { // standard deviations of the prior
      ctx.beginPath();
      ctx.arc(px(0), py(0), radius / this.view * size / 2, 0, 7);
      ctx.stroke();
    }
    ctx.globalAlpha = 1;
    for (const share of [-0.5, 0.5, 1]) {
      const value = share * this.view;
      ctx.fillText(significant(value, 2), Math.min(px(value), size - 22), py(0) + 12);
      ctx.fillText(significant(value, 2), px(0) + 3, Math.max(py(value), 12));
    }
    ctx.font = "600 10px system-ui, sans-serif";
    ctx.textAlign = "center";
    ctx.textBaseline = "middle";
    const colours = hues();
    shared.labels.forEach((label, index) => {
      ctx.globalAlpha = shared.faded(index) ? 0.06 : 0.8;
      ctx.fillStyle = colours[label % 10];
      ctx.fillText(label, px(made.points[2 * index]), py(made.points[2 * index + 1]));
    });
    ctx.globalAlpha = 1;
    ctx.textAlign = "start";
    ctx.textBaseline = "alphabetic";
    if (shared.prior) {
      ctx.strokeStyle = colour("ink");
      ctx.lineWidth = 1.5;
      for (let index = 0; index < shared.samples.length; index += 2) {
        const x = px(shared.samples[index]), y = py(shared.samples[index + 1]);
        ctx.strokeRect(x - 3, y - 3, 6, 6);
      }
    }
    ctx.strokeStyle = colour("ink");
    ctx.lineWidth = 2;
    if (shared.chosen != null) {
      ctx.beginPath();
      ctx.arc(px(made.points[2 * shared.chosen]), py(made.points[2 * shared.chosen + 1]), 9, 0, 7);
      ctx.stroke();
    }
    if (this.cursor) {
      const [x, y] = [px(this.cursor[0]), py(this.cursor[1])];
      ctx.beginPath();
      ctx.moveTo(x - 8, y); ctx.lineTo(x + 8, y); ctx.moveTo(x, y - 8); ctx.lineTo(x, y + 8);
      ctx.stroke();
    }
  }
}

function latentSpace(section) {
  const shared = {
    labels: section.labels, samples: section.samples, prior: false, chosen: null, digit: null,
    faded: (index) => shared.digit != null && section.labels[index] !== shared.digit,
    choose(index) {
      shared.chosen = index;
      sprite(section.originals).draw(original.canvas, index);
      section.planes.forEach((made, plane) => sprite(made.reconstructions).draw(reconstructed[plane].canvas, index));
      told.textContent = `digit ${section.labels[index]}; ` + section.planes.map((made) =>
        `${made.name} z = (${signed(made.points[2 * index], 2)}, ${signed(made.points[2 * index + 1], 2)})`).join("; ");
      planes.forEach((plane) => plane.draw());
    },
  };
  const planes = section.planes.map((made) => new Plane(made, shared));
  planes.forEach((plane) => plane.move([0, 0]));
  const original = picture("original", "tile");
  const reconstructed = section.planes.map((made) => picture(made.name, "tile"));
  const told = el("output", {}, "choose a digit in either plane");
  redraws.push(() => planes.forEach((plane) => plane.draw()));

  const digits = Array.from({ length: 10 }, (_, digit) => {
    const button = el("button", { type: "button", "aria-pressed": "false", onclick: () => {
      shared.digit = shared.digit === digit ? null : digit;
      digits.forEach((other, index) => other.setAttribute("aria-pressed", shared.digit === index));
      planes.forEach((plane) => plane.draw());
    } }, String(digit));
    redraws.push(() => { button.style.color = hues()[digit]; });
    return button;
  });
  const gallery = el("div", { class: "two", hidden: true }, ...section.planes.map((made) => {
    const sheet = made.samples, box = el("canvas", { class: "picture", role: "img", "aria-label": `${made.name}: samples from the prior` });
    sprite(sheet).ready.then(() => {
      const { image } = sprite(sheet);
      Object.assign(box, { width: image.width, height: image.height });
      box.getContext("2d").drawImage(image, 0, 0);
    });
    return el("figure", {}, box, el("figcaption", {}, `${made.name}: the squares, decoded`));
  }));
  const toggle = (label, change) => {
    const button = el("button", { type: "button", "aria-pressed": "false", onclick: () => {
      const on = button.getAttribute("aria-pressed") !== "true";
      button.setAttribute("aria-pressed", on);
      change(on);
      planes.forEach((plane) => plane.draw());
    } }, label);
    return button;
  };
  const widest = Math.max(...section.planes.map((made) => made.extent));
  return [
    el("p", {}, `Held-out digits, each where its encoder puts it. The rings are one, two and three standard deviations of the `
      + "prior. Move over a plane to see the digit that is decoded there; choose a digit to see what becomes of it in both."),
    el("div", { class: "controls" },
      el("div", { class: "digits", role: "group", "aria-label": "Show one digit alone" }, ...digits),
      toggle("samples from the prior", (on) => { shared.prior = on; gallery.hidden = !on; }),
      toggle("same axes", (on) => planes.forEach((plane) => { plane.view = on ? widest : plane.made.extent; }))),
    el("div", { class: "two" }, ...planes.map((plane) => plane.node)),
    el("h3", {}, "The chosen digit, and its reconstructions"),
    el("div", { class: "row" }, original.figure, ...reconstructed.map((one) => one.figure), el("p", {}, told)),
    gallery,
    el("h3", {}, `Compared in numbers, ${section.seeds > 1 ? `mean and standard deviation of ${section.seeds} seeds` : "of one seed"}`),
    table("", ["", ...section.planes.map((made) => made.name)], section.numbers.map(({ label, values }) => [
      label, ...values.map((value) => value == null ? "–" : significant(value.mean)
        + (value.standard_deviation == null ? "" : ` ± ${significant(value.standard_deviation, 2)}`)),
    ])),
  ];
}

// 2. Faces
function faces(section) {
  const { factors, names } = section, zero = factors.indexOf(0);
  const state = { face: 0, name: names[0], at: zero, other: "", otherAt: zero };
  const moved = picture("moved", "face"), original = picture("original", "face");
  const dose = el("div"), told = el("output", {}), verdict = el("p", {});
  let curve = null;

  const draw = () => {
    const attribute = names.indexOf(state.name);
    if (state.other) {
      const order = section.pair.names[0] === state.name ? [state.at, state.otherAt] : [state.otherAt, state.at];
      sprite(section.pair.sprites[state.face]).draw(moved.canvas, order[0] * factors.length + order[1]);
    } else sprite(section.edits[attribute]).draw(moved.canvas, state.face * factors.length + state.at);
    sprite(section.originals).draw(original.canvas, state.face);
    const parts = [`${words(state.name)} ${signed(factors[state.at])}`];
    if (state.other) parts.push(`${words(state.other)} ${signed(factors[state.otherAt])}`);
    told.textContent = parts.join(", ");
    moved.canvas.setAttribute("aria-label", `face ${state.face + 1}, ${told.textContent}`);
    curve?.mark(state.at);
    const row = section.dose[state.name];
    verdict.textContent = row ? `An independent classifier finds ${words(state.name)} in ${percent(row.reached[state.at])} of `
      + `${section.faces} faces at ${signed(factors[state.at])} (95 % interval ${percent(row.low[state.at])} to ${percent(row.high[state.at])}).` : "";
  };
  const change = () => {
    const row = section.dose[state.name];
    curve = row && chart({
      label: `Share of faces in which ${words(state.name)} is found, against the factor`, x: factors, xLabel: `factor of ${words(state.name)}`,
      yLabel: "found in", curves: [{ values: row.reached, hue: "blue" }], band: row,
    });
    dose.replaceChildren(...(curve ? [curve.node] : []));
    const partner = section.pair && section.pair.names.includes(state.name) ? section.pair.names.find((name) => name !== state.name) : "";
    second.fill([["", "none"], ...(partner ? [[partner, words(partner)]] : [])]);
    second.box.hidden = !partner;
    state.other = "";
    otherSlider.box.hidden = true;
    draw();
  };
  const word = (index) => signed(factors[index]);
  const one = slider("factor", factors.length, zero, (at) => { state.at = at; draw(); }, word);
  const otherSlider = slider("second factor", factors.length, zero, (at) => { state.otherAt = at; draw(); }, word);
  const first = select("attribute", names.map((name) => [name, words(name)]), (name) => { state.name = name; change(); });
  const second = select("second attribute", [["", "none"]], (name) => {
    state.other = name;
    otherSlider.box.hidden = !name;
    draw();
  });
  const thumbs = Array.from({ length: section.shown }, (_, index) => {
    const canvas = el("canvas", { class: "tile", "aria-label": `face ${index + 1}` });
    sprite(section.originals).draw(canvas, index);
    return canvas;
  });
  change();
  return [
    el("p", {}, `Held-out faces whose latent is moved along the direction of an attribute; a factor counts ${section.scale}. `
      + "At 0 the face is only encoded and decoded."),
    choice("face", thumbs, (index) => { state.face = index; draw(); }),
    el("div", { class: "controls" }, first.box, one.box, second.box, otherSlider.box),
    el("div", { class: "row" }, original.figure, el("figure", {}, moved.canvas, el("figcaption", {}, told)), el("div", { class: "beside" }, dose, verdict)),
    ...leakage(section.leakage),
    el("h3", {}, "A face in 800 bytes"),
    table("", ["", "bytes", "PSNR, dB"], section.stored.map(({ name, bytes, psnr_decibels }) =>
      [name, significant(bytes, 4), significant(psnr_decibels, 3)])),
  ];
}

function leakage({ targets, attributes, factor, contrasts, exclusive }) {
  const told = el("output", { class: "told" }, "Move over a cell, or tab into the matrix and use the arrow keys.");
  const body = el("tbody");
  let kind = Object.keys(contrasts)[0];
  const cells = [], own = (row, column) => targets[row] === attributes[column];
  const counted = Object.values(contrasts).flatMap(({ value }) =>
    value.flatMap((line, row) => line.filter((_, column) => !own(row, column) && !exclusive[row][column])));
  const most = counted.reduce((greatest, value) => Math.max(greatest, Math.abs(value)), 1); // percentage points
  const say = (row, column) => {
    const { value, low, high } = contrasts[kind], points = (at) => signed(at, 1);
    return `${words(targets[row])} ${signed(factor)} changes ${words(attributes[column])} by ${points(value[row][column])} `
      + `percentage points (${points(low[row][column])} to ${points(high[row][column])})`
      + (exclusive[row][column] && !own(row, column) ? ", which it does by definition." : ".");
  };
  const fill = () => cells.forEach(({ cell, row, column }) => {
    const value = contrasts[kind].value[row][column], share = Math.min(100, 100 * Math.abs(value) / most);
    cell.style.backgroundColor = own(row, column) ? "" : `color-mix(in srgb, var(--${value < 0 ? "blue" : "orange"}) ${share}%, var(--fill))`;
    cell.title = say(row, column);
  });
  targets.forEach((target, row) => body.append(el("tr", {}, el("th", { scope: "row" }, words(target)), ...attributes.map((_, column) => {
    const show = () => { told.textContent = say(row, column); };
    const cell = el("td", { tabindex: row || column ? -1 : 0, onpointerenter: show, onfocus: show, onclick: show,
      class: own(row, column) ? "self" : exclusive[row][column] ? "excluded" : null });
    cells.push({ cell, row, column });
    return cell;
  }))));
  body.addEventListener("keydown", (event) => {
    const at = cells.findIndex(({ cell }) => cell === document.activeElement), width = attributes.length;
    const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -width, ArrowDown: width }[event.key];
    if (at < 0 || !step) return;
    cells[at + step]?.cell.focus();
    event.preventDefault();
  });
  fill();
  const head = el("tr", {}, el("td"), ...attributes.map((name) => el("th", { scope: "col" }, el("span", {}, words(name)))));
  return [
    el("h3", {}, "What else changes"),
    el("p", {}, "Rows: the attribute that faces are moved along. Columns: by how much the share of faces in which another is "
      + "found grows (orange) or shrinks (blue); hatched, where it must by definition."),
    el("div", { class: "controls" }, select("direction", Object.keys(contrasts).map((name) => [name, name]), (name) => { kind = name; fill(); }).box),
    told,
    el("div", { class: "scroll" }, el("table", { class: "matrix" }, el("thead", {}, head), body)),
  ];
}

// 3. Attack
function ordinal(objective) {
  const rank = /^rank (\d+)$/.exec(objective)?.[1];
  return rank ? `${rank}${{ 2: "nd", 3: "rd" }[rank] ?? "th"} likeliest` : objective;
}
function attack(section) {
  if (section.robust) return robust(section.robust);
  const { aims, levels } = section;
  const state = { aim: 0, at: section.start };
  const original = picture("photo", "picture"), noise = picture("perturbation", "picture"), fooled = picture("adversarial picture", "picture");
  const enlarged = noise.figure.querySelector("figcaption"), badge = el("span", { class: "badge" }), bars = el("div", { class: "bars" });
  const where = el("p"), curves = el("div");
  let curve = null;
  sprite(section.original).draw(original.canvas, 0);

  const draw = async () => {
    const aim = aims[state.aim], now = aim.entries[state.at], at = `${state.aim} ${state.at}`;
    curve.mark(state.at);
    badge.textContent = now.fools ? "the saved PNG still fools the network" : "the saved PNG does not fool the network";
    badge.className = `badge ${now.fools ? "yes" : "no"}`;
    bars.replaceChildren(...now.top.flatMap(({ name, probability, saved, own }) => {
      const bar = el("i"), mark = el("b", { title: `saved as PNG: ${percent(saved, 1)}` });
      bar.style.width = percent(probability, 2).replace(" ", "");
      mark.style.left = `calc(${percent(saved, 2).replace(" ", "")} - 1px)`;
      return [el("span", {}, words(name)), el("div", { class: own ? "bar true" : "bar" }, bar, mark), el("output", {}, percent(probability, 1))];
    }));
    const [photo, difference] = await Promise.all([sprite(section.original).pixels(0), sprite(aim.differences).pixels(state.at)]);
    if (at !== `${state.aim} ${state.at}`) return;
    const shown = new ImageData(photo.width, photo.height), made = new ImageData(photo.width, photo.height);
    made.data.forEach((_, index) => { made.data[index] = index % 4 < 3 ? (photo.data[index] + difference.data[index] + 128) & 255 : 255; });
    const changes = Array.from(made.data, (value, index) => (index % 4 < 3 ? value - photo.data[index] : 0));
    const most = changes.reduce((greatest, change) => Math.max(greatest, Math.abs(change)), 1);
    changes.forEach((change, index) => { shown.data[index] = index % 4 < 3 ? 127.5 + change * (127.5 / most) : 255; });
    for (const [{ canvas }, image] of [[noise, shown], [fooled, made]]) {
      Object.assign(canvas, { width: image.width, height: image.height });
      canvas.getContext("2d").putImageData(image, 0, 0);
      canvas.dataset.index = at;
    }
    enlarged.textContent = now.most ? `perturbation × ${(127.5 / most).toFixed(0)} (±${now.most} grey levels)` : "no perturbation";
    fooled.figure.querySelector("figcaption").textContent = `adversarial picture: ${words(now.top[0].name)}`;
  };
  const change = () => {
    const aim = aims[state.aim];
    const target = { name: aim.target ? words(aim.target) : "top class", values: aim.entries.map((entry) => entry.aimed), hue: "orange" };
    const truth = { name: `${words(section.truth)} (true class)`, values: aim.entries.map((entry) => entry.truth), hue: "blue", dash: "7 4" };
    curve = chart({ label: `Probabilities against the size of the perturbation, ${aim.name}`, x: levels, xLabel: "ε, grey levels",
      yLabel: "probability", curves: [target, truth], flip: aim.flip == null ? null : levels[aim.flip] });
    curves.replaceChildren(curve.node);
    where.textContent = aim.flip == null ? "The network's top class stays the same at every ε of the sweep."
      : `The top class flips at ε = ${significant(levels[aim.flip], 3)} grey levels, the first of the sweep at which it is another one.`;
    draw();
  };
  const one = slider("ε", levels.length, state.at, (at) => { state.at = at; draw(); },
    (at) => `${significant(levels[at], 3)} grey levels (${significant(section.epsilons[at], 3)} of ${section.unit})`);
  change();
  return [
    el("p", {}, `${section.attack}, in ${section.norm}, against the network's ${words(section.truth)}. Bars are what the network makes of the `
      + "picture as computed; the black marks, of the picture saved with 8 bits, which is the one that is shown."),
    el("div", { class: "controls" }, choice("objective", aims.map((aim) => aim.target ? `${ordinal(aim.name)}: ${words(aim.target)}` : aim.name),
      (index) => { state.aim = index; change(); }), one.box),
    el("div", { class: "two pictures" }, original.figure, noise.figure, fooled.figure),
    el("p", {}, badge),
    el("div", { class: "two" }, el("div", {}, el("h3", {}, "Four likeliest classes"), bars), el("div", {}, el("h3", {}, "Over the sweep"), curves, where)),
  ];
}

function robust({ photos, levels, curves }) {
  const made = chart({ label: "Share of photos that are still recognised, against ε", x: levels, xLabel: "ε, grey levels", yLabel: "recognised",
    curves: curves.map(({ name, value }, index) => ({ name, values: value, hue: ["blue", "orange"][index], dash: index ? "7 4" : null })), band: curves[0] });
  const told = el("p");
  const show = (at) => {
    made.mark(at);
    told.textContent = curves.map(({ name, value, low, high }) => `${name}: ${percent(value[at], 1)} (${percent(low[at], 1)} to ${percent(high[at], 1)})`).join("; ");
  };
  const one = slider("ε", levels.length, 0, show, (at) => `${significant(levels[at], 3)} grey levels`);
  show(0);
  return [el("p", {}, `${photos.toLocaleString("en")} photos.`), el("div", { class: "controls" }, one.box), made.node, told];
}

// 4. How it was made
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
    ...parts.map(({ name, facts, config }) => el("div", {}, el("h3", {}, name), table("texts", null, facts),
      el("details", {}, el("summary", {}, "configuration"), table("texts", null, config)))),
    el("details", {}, el("summary", {}, `${files.length} files`), el("ul", {}, ...files.map(({ href, name, size }) =>
      el("li", {}, el("a", { href }, name), ` ${size}`)))),
  ];
}

const SECTIONS = [
  ["latent", "Latent space", latentSpace], ["faces", "Faces", faces], ["attack", "Attack", attack], ["made", "How it was made", howItWasMade],
];
document.title = `latentlab: ${data.run}`;
document.getElementById("run").textContent = data.run;
for (const [id, title, make] of SECTIONS) {
  const part = data[id];
  document.querySelector("nav").append(el("a", { href: `#${id}` }, title));
  document.querySelector("main").append(el("section", { id, "aria-labelledby": `${id}-title` }, el("h2", { id: `${id}-title` }, title),
    ...(part.missing ? [el("p", { class: "soft" }, `${part.missing} `, el("code", {}, part.command))] : make(part))));
}
const redraw = () => redraws.forEach((one) => one());
redraw();
for (const query of [dark, print]) query.addEventListener("change", redraw);
