// Faces moved along attributes, dose-response curves, leakage; helpers are those of latentlab/report/page.js.
function faces(section) {
  if (section.photo) return ownPhoto(section.photo);
  const { strengths, names } = section, zero = strengths.indexOf(0);
  const state = { face: 0, name: names[0], at: section.start, other: "", otherAt: zero };
  const moved = picture("moved", "face"), original = picture("original", "face");
  const dose = el("div"), told = el("output", {}), verdict = el("p", {});
  const missing = new Set(section.notLearned);
  let curve = null;

  const draw = () => {
    const attribute = names.indexOf(state.name);
    if (state.other) {
      const order = section.pair.names[0] === state.name ? [state.at, state.otherAt] : [state.otherAt, state.at];
      sprite(section.pair.sprites[state.face]).draw(moved.canvas, order[0] * strengths.length + order[1]);
    } else sprite(section.edits[attribute]).draw(moved.canvas, state.face * strengths.length + state.at);
    sprite(section.originals).draw(original.canvas, state.face);
    const parts = [`${words(state.name)} ${signed(strengths[state.at])}`];
    if (state.other) parts.push(`${words(state.other)} ${signed(strengths[state.otherAt])}`);
    told.textContent = parts.join(", ");
    moved.canvas.setAttribute("aria-label", `face ${state.face + 1}, ${told.textContent}`);
    curve?.mark(state.at);
    const row = section.dose[state.name];
    const worth = row?.accuracy ? `, right about it in ${percent(row.accuracy)} of faces that were not edited,` : "";
    verdict.textContent = row ? `An independent classifier${worth} finds ${words(state.name)} in ${percent(row.reached[state.at])} of `
      + `${section.faces} faces at ${signed(strengths[state.at])} (95 % interval ${percent(row.low[state.at])} to ${percent(row.high[state.at])}).`
      + (missing.has(state.name) ? " The model has not learned this attribute." : "") : "";
  };
  const change = () => {
    const row = section.dose[state.name];
    curve = row && chart({
      label: `Share of faces in which ${words(state.name)} is found, against the strength of the edit`, x: strengths, xLabel: `strength of ${words(state.name)}`,
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
  const word = (index) => signed(strengths[index]);
  const one = slider("strength", strengths.length, section.start, (at) => { state.at = at; draw(); }, word);
  const otherSlider = slider("second strength", strengths.length, zero, (at) => { state.otherAt = at; draw(); }, word);
  const first = select("attribute", names.map((name) => [name, words(name) + (missing.has(name) ? " (not learned)" : "")]), (name) => { state.name = name; change(); });
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
    el("p", {}, `Held-out faces whose latent is moved along the direction of an attribute; a strength counts ${section.scale}. `
      + "At 0 the face is only encoded and decoded."),
    choice("face", thumbs, (index) => { state.face = index; draw(); }),
    el("div", { class: "controls" }, first.box, one.box, second.box, otherSlider.box),
    el("div", { class: "row" }, original.figure, el("figure", {}, moved.canvas, el("figcaption", {}, told)), el("div", { class: "beside" }, dose, verdict)),
    ...(section.pretrained ? [el("p", {}, "The VAE was trained beforehand, by ", el("code", {}, section.pretrained), ".")] : []),
    ...leakage(section.leakage, section.scale),
    ...(section.estimators ? estimators(section.estimators) : []),
    el("h3", {}, "A face in 800 bytes"),
    table("", ["", "bytes", "PSNR, dB"], section.stored.map(({ name, bytes, psnr_decibels }) =>
      [name, significant(bytes, 4), significant(psnr_decibels, 3)])),
  ];
}

function estimators({ rows, success, attributes, faces }) {
  const kinds = { means: "difference of means", logistic: "logistic regression", svm: "SVM", lda: "LDA" };
  const cost = (value, first, digits) => value.every(Number.isFinite)
    ? `${value[0].toFixed(digits)} (${value[1].toFixed(digits)} to ${value[2].toFixed(digits)}) against ${first.toFixed(digits)}` : "–";
  return [
    el("h3", {}, "Which direction edits best"),
    el("p", {}, `For how many of ${attributes} attributes faces can be moved until ${percent(success)} of ${faces} show it, and what that costs, `
      + "against the difference of means, raw, on the same attributes; lower is better. 95 % intervals over faces."),
    table("", ["direction", "attributes reached", "change of others, points", "identity distance", "angle to means, raw", "standard error"],
      rows.map(({ name, reached, leakage, leakageOfFirst, identity, identityOfFirst, angle, error }) => {
        const [kind, variant] = name.split(" ");
        return [`${kinds[kind] ?? kind}, ${variant}`, String(reached), cost(leakage, leakageOfFirst, 1), cost(identity, identityOfFirst, 2),
          `${angle.toFixed(0)}°`, error == null ? "–" : `${error.toFixed(1)}°`];
      })),
  ];
}

function ownPhoto({ face, strip, steps, edit, lines }) {
  const photo = picture("photo", "face"), moved = picture("", "face"), told = el("output", {});
  sprite(face).draw(photo.canvas, 0);
  const draw = (at) => {
    sprite(strip).draw(moved.canvas, at);
    told.textContent = at ? `${percent(at / (steps - 1))} of ${words(edit)}` : "decoded";
    moved.canvas.setAttribute("aria-label", told.textContent);
  };
  const share = slider("share of the edit", steps, steps - 1, draw, (at) => percent(at / (steps - 1)));
  draw(steps - 1);
  return [
    el("p", {}, `A photo moved along the directions of attributes by ${words(edit)}.`),
    ...lines.map((line) => el("p", {}, line)),
    el("div", { class: "controls" }, share.box),
    el("div", { class: "row" }, photo.figure, el("figure", {}, moved.canvas, el("figcaption", {}, told))),
  ];
}

function leakage({ targets, attributes, strength, estimators, exclusive }, scale) {
  const told = el("output", { class: "told" }, "Move over a cell, or tab into the matrix and use the arrow keys.");
  const body = el("tbody");
  let kind = Object.keys(estimators)[0];
  const cells = [], own = (row, column) => targets[row] === attributes[column];
  const counted = Object.values(estimators).flatMap(({ value }) =>
    value.flatMap((line, row) => line.filter((_, column) => !own(row, column) && !exclusive[row][column])));
  const most = counted.reduce((greatest, value) => Math.max(greatest, Math.abs(value)), 1); // percentage points
  const say = (row, column) => {
    const { value, low, high } = estimators[kind], points = (at) => signed(at, 1);
    return `${words(targets[row])} ${signed(strength)} changes ${words(attributes[column])} by ${points(value[row][column])} `
      + `percentage points (${points(low[row][column])} to ${points(high[row][column])})`
      + (exclusive[row][column] && !own(row, column) ? ", which it does by definition." : ".");
  };
  const fill = () => cells.forEach(({ cell, row, column }) => {
    const value = estimators[kind].value[row][column], share = Math.min(100, 100 * Math.abs(value) / most);
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
    el("div", { class: "controls" }, select("estimator of the direction", Object.keys(estimators).map((name) => [name, name]), (name) => { kind = name; fill(); }).box),
    el("p", { class: "scale" }, el("span", {}, `−${most.toFixed(0)}`), el("i"), el("span", {}, `+${most.toFixed(0)} percentage points, at ${signed(strength)} ${scale}`)),
    told,
    el("div", { class: "scroll" }, el("table", { class: "matrix" }, el("thead", {}, head), body)),
  ];
}

sectionMakers.faces = faces;
