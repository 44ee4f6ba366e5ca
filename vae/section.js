// Latent planes: points, what is decoded everywhere, and numbers; helpers are those of latentlab/report/page.js.
const DIGITS = {
  light: ["#332288", "#0077bb", "#117733", "#7a6a00", "#cc3311", "#aa3377", "#5a5a5a", "#994f00", "#00788a", "#882255"],
  dark: ["#a99bff", "#66b8ff", "#62d089", "#ddcc77", "#ff8f78", "#ff9bd0", "#c0c0c0", "#ffb066", "#55d6e0", "#e58fb5"],
};

const hues = () => DIGITS[dark.matches && !print.matches ? "dark" : "light"];

class Plane {
  constructor(made, shared) {
    Object.assign(this, { made, shared, cursor: null, view: made.extent });
    this.canvas = el("canvas", {
      class: "plane", tabindex: 0, role: "application", "aria-label": `${made.name}: latent plane of ${shared.labels.length} digits. `
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
    const axes = shared.wide ? ["1st direction", "2nd direction"] : ["z₁", "z₂"];
    ctx.textAlign = "end";
    ctx.fillText(axes[0], size - 4, py(0) - 6);
    ctx.textAlign = "start";
    ctx.fillText(axes[1], px(0) + 6, size - 6);
    ctx.font = "600 10px system-ui, sans-serif";
    ctx.textAlign = "center";
    ctx.textBaseline = "middle";
    const colours = hues();
    shared.labels.forEach((label, index) => {
      ctx.globalAlpha = shared.faded(index) ? 0.06 : 0.8;
      ctx.fillStyle = colours[label % 10];
      ctx.fillText(shared.classes[label] ?? "·", px(made.points[2 * index]), py(made.points[2 * index + 1]));
    });
    ctx.globalAlpha = 1;
    ctx.textAlign = "start";
    ctx.textBaseline = "alphabetic";
    if (shared.prior) {
      ctx.strokeStyle = colour("ink");
      ctx.lineWidth = 1.5;
      for (let index = 0; index < made.samplePoints.length; index += 2) {
        const x = px(made.samplePoints[index]), y = py(made.samplePoints[index + 1]);
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
    wide: section.latentDim > 2, labels: section.labels, classes: section.classes, prior: false, chosen: null, digit: null,
    faded: (index) => shared.digit != null && section.labels[index] !== shared.digit,
    choose(index) {
      shared.chosen = index;
      sprite(section.originals).draw(original.canvas, index);
      section.planes.forEach((made, plane) => sprite(made.reconstructions).draw(reconstructed[plane].canvas, index));
      told.textContent = `digit ${section.classes[section.labels[index]] ?? ""}; ` + section.planes.map((made) =>
        `${made.name} z = (${signed(made.points[2 * index], 2)}, ${signed(made.points[2 * index + 1], 2)})`).join("; ");
      planes.forEach((plane) => plane.draw());
    },
  };
  const planes = section.planes.map((made) => new Plane(made, shared));
  const original = picture("original", "tile");
  const reconstructed = section.planes.map((made) => picture(made.name, "tile"));
  const told = el("output", {}, "choose a digit in either plane");
  planes.forEach((plane) => plane.move([0, 0]));
  if (section.labels.length) shared.choose(0);
  redraws.push(() => planes.forEach((plane) => plane.draw()));

  const digits = section.classes.map((name, digit) => {
    const button = el("button", { type: "button", "aria-pressed": "false", onclick: () => {
      shared.digit = shared.digit === digit ? null : digit;
      digits.forEach((other, index) => other.setAttribute("aria-pressed", shared.digit === index));
      planes.forEach((plane) => plane.draw());
    } }, name);
    redraws.push(() => { button.style.color = hues()[digit % 10]; });
    return button;
  });
  const wholeSheet = (sheet, label, caption) => {
    const box = el("canvas", { class: "picture", role: "img", "aria-label": label });
    sprite(sheet).ready.then(() => {
      const { image } = sprite(sheet);
      Object.assign(box, { width: image.width, height: image.height });
      box.getContext("2d").drawImage(image, 0, 0);
    });
    return el("figure", {}, box, el("figcaption", {}, caption));
  };
  const gallery = el("div", { class: "two", hidden: true }, ...section.planes.map((made) =>
    wholeSheet(made.samples, `${made.name}: samples from the prior`, `${made.name}: the squares, decoded`)));
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
    section.latentDim > 2 ? el("p", {}, `The models have ${section.latentDim} latent dimensions. Each plane is the one through the mean of the `
      + "codes along their two directions of largest variance, and z are the coordinates in it.") : null,
    section.shownClass ? el("p", {}, `The VAE is given the class of every image. Its plane is decoded as the class ${section.shownClass}.`) : null,
    el("div", { class: "controls" },
      el("div", { class: "digits", role: "group", "aria-label": "Show one digit alone" }, ...digits),
      toggle("samples from the prior", (on) => { shared.prior = on; gallery.hidden = !on; }),
      toggle("same axes", (on) => planes.forEach((plane) => { plane.view = on ? widest : plane.made.extent; }))),
    el("div", { class: "two" }, ...planes.map((plane) => plane.node)),
    el("h3", {}, "The chosen digit, and its reconstructions"),
    el("div", { class: "row" }, original.figure, ...reconstructed.map((one) => one.figure), el("p", {}, told)),
    gallery,
    ...section.styles ? [el("h3", {}, "Samples from the prior, a row each, as every class"),
      el("div", { class: "two" }, wholeSheet(section.styles, "VAE: samples from the prior as every class", `classes ${section.classes.join(", ")}`))] : [],
    el("h3", {}, `Compared in numbers, ${section.seeds > 1 ? `mean and standard deviation of ${section.seeds} seeds` : "of one seed"}`),
    el("p", { class: "soft" }, "↓ lower is better, ↑ higher is better; a density of 1 is that of real images."),
    table("", ["", ...section.planes.map((made) => made.name)], section.numbers.map(({ label, values }) => [
      label, ...values.map((value) => value == null ? "–" : significant(value.mean)
        + (value.standard_deviation == null ? "" : ` ± ${significant(value.standard_deviation, 2)}`)),
    ])),
  ];
}

sectionMakers.latent = latentSpace;
