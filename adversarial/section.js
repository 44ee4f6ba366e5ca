// An attacked photo over a sweep, or the accuracy under attack on many; helpers are those of latentlab/report/page.js.
function ordinal(objective) {
  const rank = /^rank (\d+)$/.exec(objective)?.[1];
  return rank ? `${rank}${{ 2: "nd", 3: "rd" }[rank] ?? "th"} class` : objective;
}
function attack(section) {
  if (section.robust) return robust(section.robust);
  const { objectives, levels } = section, attacks = [...new Set(objectives.map((objective) => objective.attack))];
  const state = { objective: section.first, at: section.start };
  const original = picture("photo", "picture"), noise = picture("perturbation", "picture"), made = picture("attacked picture", "picture");
  const enlarged = noise.figure.querySelector("figcaption"), badge = el("span", { class: "badge" }), bars = el("div", { class: "bars" });
  const where = el("p"), curves = el("div");
  let curve = null;
  sprite(section.original).draw(original.canvas, 0);

  const draw = async () => {
    const objective = objectives[state.objective], now = objective.entries[state.at], at = `${state.objective} ${state.at}`;
    curve.mark(state.at);
    badge.textContent = `objective ${now.reached ? "reached" : "missed"} by the saved PNG`;
    badge.className = `badge ${now.reached ? "yes" : "no"}`;
    bars.replaceChildren(...now.top.flatMap(({ name, probability, saved, own }) => {
      const bar = el("i"), mark = el("b", { title: `saved as PNG: ${percent(saved, 1)}` });
      bar.style.width = percent(probability, 2).replace(" ", "");
      mark.style.left = `calc(${percent(saved, 2).replace(" ", "")} - 1px)`;
      return [el("span", {}, words(name)), el("div", { class: own ? "bar true" : "bar" }, bar, mark), el("output", {}, percent(probability, 1))];
    }));
    const [photo, difference] = await Promise.all([sprite(section.original).pixels(0), sprite(objective.differences).pixels(state.at)]);
    if (at !== `${state.objective} ${state.at}`) return;
    const shown = new ImageData(photo.width, photo.height), pixels = new ImageData(photo.width, photo.height);
    pixels.data.forEach((_, index) => { pixels.data[index] = index % 4 < 3 ? (photo.data[index] + difference.data[index] + 128) & 255 : 255; });
    const changes = Array.from(pixels.data, (value, index) => (index % 4 < 3 ? value - photo.data[index] : 0));
    changes.forEach((change, index) => { shown.data[index] = index % 4 < 3 ? 127.5 + change * section.enlarged : 255; });
    for (const [{ canvas }, image] of [[noise, shown], [made, pixels]]) {
      Object.assign(canvas, { width: image.width, height: image.height });
      canvas.getContext("2d").putImageData(image, 0, 0);
      canvas.dataset.index = at;
    }
    enlarged.textContent = now.most ? `perturbation × ${section.enlarged} (±${now.most} grey levels)`
      : "no perturbation: less than one grey level";
    made.figure.querySelector("figcaption").textContent = `saved with 8 bits: ${words(now.saved)}, ${percent(now.confidence, 1)}`;
  };
  const change = () => {
    const objective = objectives[state.objective];
    const target = { name: objective.target ? words(objective.target) : "top class", values: objective.entries.map((entry) => entry.aimed), hue: "orange" };
    const truth = { name: `${words(section.truth)} (true class)`, values: objective.entries.map((entry) => entry.truth), hue: "blue", dash: "7 4" };
    curve = chart({ label: `Probabilities against the size of the perturbation, ${objective.name}`, x: levels, xLabel: "ε, grey levels, logarithmic", logarithmic: true,
      yLabel: "probability", curves: [target, truth], flip: objective.flip == null ? null : levels[objective.flip] });
    curves.replaceChildren(curve.node);
    const flips = (at, kind) => `${kind}, ${at == null ? "at no ε of the sweep" : `at ε = ${significant(levels[at], 3)} grey levels`}`;
    where.textContent = `The top class first becomes another one: ${flips(objective.flip, "as computed")}; ${flips(objective.flipSaved, "saved with 8 bits")}.`;
    draw();
  };
  const one = slider("ε", levels.length, state.at, (at) => { state.at = at; draw(); },
    (at) => `${significant(levels[at], 3)} grey levels (${significant(section.epsilons[at], 3)} of ${section.unit})`);
  change();
  return [
    el("p", {}, `${attacks.join(" and ")}, in ${section.norm}, against the network's ${words(section.truth)}. Bars are what the network makes of the `
      + "picture as computed; the black marks, of the picture saved with 8 bits, which is the one that is shown."),
    el("div", { class: "controls" }, choice("objective", objectives.map((objective) => (attacks.length > 1 ? `${objective.attack}, ` : "")
      + (objective.target ? `${ordinal(objective.name)}: ${words(objective.target)}` : objective.name)), (index) => { state.objective = index; change(); }, state.objective), one.box),
    el("div", { class: "two pictures" }, original.figure, noise.figure, made.figure),
    el("p", {}, badge),
    el("div", { class: "two" }, el("div", {}, el("h3", {}, "Top four classes"), bars), el("div", {}, el("h3", {}, "Over the sweep"), curves, where)),
  ];
}

function robust({ photos, what, attack, levels, curves }) {
  const made = chart({ label: `Share of ${what} that are still recognised, against ε`, x: levels, xLabel: "ε, grey levels, logarithmic", logarithmic: true, yLabel: "recognised",
    curves: curves.map(({ name, value }, index) => ({ name, values: value, hue: ["blue", "orange", "green"][index], dash: [null, "7 4", "2 3"][index] })), band: curves[0] });
  const told = el("p");
  const show = (at) => {
    made.mark(at);
    told.textContent = curves.map(({ name, value, low, high }) => `${name}: ${percent(value[at], 1)} (${percent(low[at], 1)} to ${percent(high[at], 1)})`).join("; ");
  };
  const one = slider("ε", levels.length, 0, show, (at) => `${significant(levels[at], 3)} grey levels`);
  show(0);
  return [el("p", {}, `${photos.toLocaleString("en")} ${what}. Robust accuracy against ${attack}: an upper bound, for a stronger attack may find more.`), el("div", { class: "controls" }, one.box), made.node, told];
}

sectionMakers.attack = attack;
