// Of the drawn images; the sharpness of a phone's screen without the memory of a wall's
const SIDE = 448;

const SCALES = {
  block: (unit) => `this image, this ${unit}`,
  image: (unit) => `this image, all ${unit}s`,
  all: (unit) => `all images, this ${unit}`,
};

class Explorer {
  constructor(data, colours) {
    this.data = data;
    this.colours = colours;
    this.image = 0;
    this.block = 0;
    this.token = null;
    this.pictures = data.images.map((image) => Object.assign(new Image(), { src: image.source }));
    this.section = element("section", { "aria-labelledby": "explorer-title" });
    this.section.append(...this.introduction(), this.picker(), this.shownName(), this.controls(), this.panels(),
      this.scaleBar(), this.legend(), this.readout(), this.predictions());
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw());
  }

  introduction() {
    const { same, images, pruned, blockWord } = this.data;
    const others = same === images.length ? "" : "; a dot marks the others";
    const agree = same === null ? "" : ` Dense and pruned model name the same class for ${same} of ${images.length} images${others}.`;
    const kept = !pruned ? "" : this.data.merges ? "which of them it merges, " : "what it keeps of the image, ";
    return [
      element("h2", { id: "explorer-title" }, `${capital(blockWord)} by ${blockWord}`),
      element("p", { class: "hint" }, `How much every ${blockWord} changes every token, ${kept}and what the model makes of it.${agree}`),
    ];
  }

  picker() {
    const labels = this.data.images.map((image, index) => {
      const input = element("input", { type: "radio", name: "image", value: index, checked: index === 0 });
      input.addEventListener("change", () => { this.image = index; this.token = null; this.draw(); });
      const differs = changesClass(image);
      const picture = element("img", { src: image.source, alt: differs ? `${image.name} (another class when pruned)` : image.name, title: image.name });
      return element("label", { class: differs ? "differs" : null }, input, picture);
    });
    return element("fieldset", { class: "picker" }, element("legend", { class: "unseen" }, "Image"), ...labels);
  }

  shownName() {
    this.name = element("p", { class: "shown", id: "shown" });
    return this.name;
  }

  controls() {
    const count = this.data.blocks.length;
    this.slider = element("input", { type: "range", class: "slider", id: "block", min: 0, max: count - 1, step: 1, value: 0 });
    this.slider.addEventListener("input", () => { this.block = Number(this.slider.value); this.token = null; this.draw(); });
    this.told = element("output", { for: "block", id: "block-told" });
    const title = element("div", { class: "control-title" },
      element("label", { for: "block" }, capital(this.data.blockWord)), this.told);
    const slide = element("div", { class: "slide" }, title, this.steps(), this.slider);
    slide.style.setProperty("--blocks", count);
    return element("div", { class: "controls" }, slide, this.settings());
  }

  steps() {
    this.bars = this.data.blocks.map((_, index) => {
      const step = element("div", {}, element("span"));
      step.addEventListener("click", () => { this.slider.value = index; this.slider.dispatchEvent(new Event("input")); });
      return step;
    });
    return element("div", { class: "steps", "aria-hidden": "true" }, ...this.bars);
  }

  settings() {
    this.scale = element("select", { id: "scale" },
      ...Object.entries(SCALES).map(([value, words]) => element("option", { value }, words(this.data.blockWord))));
    this.scale.addEventListener("change", () => this.draw());
    this.over = element("input", { type: "checkbox", id: "over" });
    this.over.addEventListener("change", () => this.draw());
    return element("div", { class: "settings" },
      element("label", { for: "scale" }, "Colours of", this.scale),
      element("label", { for: "over" }, this.over, "Draw the maps over the image"));
  }

  panels() {
    const { pruned } = this.data;
    const titles = { kept: pruned ? this.data.merges ? "Merged tokens" : "Kept tokens" : "Image", dense: "Shift, dense" };
    if (pruned) titles.pruned = "Shift, pruned";
    this.canvases = {};
    const figures = Object.entries(titles).map(([key, title]) => {
      const canvas = element("canvas", { id: `map-${key}`, role: "img", tabindex: 0 });
      this.canvases[key] = canvas;
      for (const kind of ["pointerdown", "pointermove"]) canvas.addEventListener(kind, (event) => this.pointAt(event, canvas));
      // a finger that is lifted leaves, too, and its reading should stay
      canvas.addEventListener("pointerleave", (event) => { if (event.pointerType !== "touch") this.choose(null); });
      canvas.addEventListener("keydown", (event) => this.move(event));
      canvas.addEventListener("blur", (event) => { if (!this.isMap(event.relatedTarget)) this.choose(null); });
      return element("figure", {}, element("figcaption", {}, title), canvas);
    });
    return element("div", { class: `panels ${pruned ? "three" : "two"}` }, ...figures);
  }

  scaleBar() {
    this.low = element("span");
    this.high = element("span");
    const canvas = element("canvas", { width: 256, height: 1, "aria-hidden": "true" });
    drawScale(canvas, this.colours);
    return element("div", { class: "scale" }, this.low, canvas, this.high,
      element("span", { class: "unit" }, `${this.data.unit}, in the model's own units`));
  }

  legend() {
    const { pruned, merges, drops, blockWord } = this.data;
    if (!pruned) return null;
    const entry = (kind, words) => element("li", {}, element("span", { class: `swatch ${kind}`, "aria-hidden": "true" }), words);
    return element("ul", { class: "legend" },
      merges ? entry("merged", "patches of one token: outlined, and nearer to their mean colour") : null,
      ...(drops || !merges ? [entry("before", "dropped before"), entry("now", `dropped behind this ${blockWord}`)] : []));
  }

  readout() {
    this.reading = element("p", { class: "readout", id: "reading", "aria-live": "polite" });
    return this.reading;
  }

  predictions() {
    this.table = element("div", { class: "predictions" });
    return this.table;
  }

  // --- what is shown ---

  async start() {
    await Promise.all(this.pictures.map((picture) => picture.decode()));
    this.draw();
  }

  draw() {
    const image = this.data.images[this.image], block = this.data.blocks[this.block];
    const factor = Math.max(1, Math.ceil(SIDE / Math.max(image.width, image.height)));
    for (const canvas of Object.values(this.canvases)) {
      if (canvas.width !== image.width * factor) canvas.width = image.width * factor;
      if (canvas.height !== image.height * factor) canvas.height = image.height * factor;
    }
    this.values = { dense: valuesOf(image.dense[this.block]) };
    const pruned = image.pruned[this.block], kept = image.kept[this.block];
    this.values.pruned = pruned && valuesOf(pruned);
    this.kept = kept && maskOf(kept, block.rows * block.columns);
    this.groups = groupsBehind(image, this.block, block);
    this.groupsBefore = groupsBehind(image, this.block - 1, block);
    this.means = this.groups && meanColours(this.pictures[this.image], block, this.groups);
    this.drawCanvases(image, block);
    this.tell(image, block);
    this.listPredictions(image);
  }

  drawCanvases(image, block) {
    const picture = this.pictures[this.image], range = this.range(image), over = this.over.checked;
    const on = (key) => this.canvases[key].getContext("2d");
    drawKept(on("kept"), picture, block, this.values.pruned, this.kept);
    if (this.groups) drawGroups(on("kept"), block, this.groups, this.means, this.token);
    drawMap(on("dense"), picture, block, this.values.dense, range, this.colours, over);
    if (this.data.pruned) {
      if (this.values.pruned) drawMap(on("pruned"), picture, block, this.values.pruned, range, this.colours, over);
      else drawAbsent(on("pruned"));
    }
    if (this.token !== null) for (const key of Object.keys(this.canvases)) {
      drawCursor(on(key), block, this.token);
      if (this.groups) drawGroup(on(key), block, this.groups, this.token);
    }
    this.low.textContent = written(range.low);
    this.high.textContent = written(range.high);
  }

  // Dense and pruned maps always share their colours, so that they can be compared.
  range(image) {
    const every = (_, index) => index;
    const blocks = this.scale.value === "image" ? this.data.blocks.map(every) : [this.block];
    const images = this.scale.value === "all" ? this.data.images : [image];
    const maps = images.flatMap((one) => blocks.flatMap((index) => [one.dense[index], one.pruned[index]])).filter(Boolean);
    return { low: Math.min(...maps.map((map) => map.low)), high: Math.max(...maps.map((map) => map.high)) };
  }

  tell(image, block) {
    const tokens = block.rows * block.columns, unit = this.data.blockWord === "stage" ? "positions" : "tokens";
    const left = this.data.pruned && block.left !== null ? `: ${block.left[this.image]} of ${tokens} ${unit} stay` : `: ${tokens} ${unit}`;
    const words = `${this.block} of 0 to ${this.data.blocks.length - 1} (${block.name})${left}`;
    this.told.textContent = words;
    this.slider.setAttribute("aria-valuetext", words);
    this.name.textContent = image.name;
    this.tellSteps();
    this.canvases.kept.setAttribute("aria-label", `${image.name}${left}${this.groups ? largestGroup(this.groups) : ""}`);
    for (const key of ["dense", "pruned"]) {
      const values = this.values[key], canvas = this.canvases[key];
      if (!canvas) continue;
      canvas.setAttribute("aria-label", values ? `Shift of ${image.name} at ${block.name}, ${key} model. ${extremes(values, block)}` : "The tokens that are left have no known rows and columns here.");
    }
    this.tellToken(block);
  }

  tellToken(block) {
    if (this.token === null) {
      const joined = this.data.merges ? " and see what it was merged with" : "";
      this.reading.textContent = `Point at a token, or move with the arrow keys on a map, to read its values${joined}.`;
      return;
    }
    const row = Math.floor(this.token / block.columns), column = this.token % block.columns;
    const parts = [`row ${row}, column ${column}`, `dense ${written(this.values.dense[this.token])}`];
    const pruned = this.values.pruned?.[this.token];
    if (pruned !== undefined) parts.push(Number.isNaN(pruned) ? "dropped before" : `pruned ${written(pruned)}`);
    if (this.groups?.[this.token] >= 0) parts.push(groupInWords(this.groups, this.groupsBefore, this.token));
    else if (this.kept && !Number.isNaN(pruned)) parts.push(this.kept[this.token] ? "kept" : `dropped behind this ${this.data.blockWord}`);
    this.reading.textContent = parts.join(" · ");
  }

  tellSteps() {
    this.data.blocks.forEach(({ rows, columns, entered, left }, index) => {
      const bar = this.bars[index], stay = left?.[this.image];
      bar.firstChild.style.height = `${(100 * (stay ?? rows * columns)) / (rows * columns)}%`;
      bar.classList.toggle("cuts", stay !== entered?.[this.image]);
      bar.classList.toggle("current", index === this.block);
    });
  }

  // --- one token, by pointer or by keys ---

  isMap(node) {
    return Object.values(this.canvases).includes(node);
  }

  pointAt(event, canvas) {
    const block = this.data.blocks[this.block], box = canvas.getBoundingClientRect();
    const at = (share, count) => Math.min(count - 1, Math.max(0, Math.floor(share * count)));
    const row = at((event.clientY - box.top) / box.height, block.rows);
    this.choose(row * block.columns + at((event.clientX - box.left) / box.width, block.columns));
  }

  move(event) {
    const block = this.data.blocks[this.block];
    const steps = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
    if (!steps) return;
    event.preventDefault();
    if (this.token === null) return this.choose(0);
    const row = Math.floor(this.token / block.columns) + steps[0], column = (this.token % block.columns) + steps[1];
    if (row >= 0 && row < block.rows && column >= 0 && column < block.columns) this.choose(row * block.columns + column);
  }

  choose(token) {
    if (token === this.token) return;
    this.token = token;
    this.drawCanvases(this.data.images[this.image], this.data.blocks[this.block]);
    this.tellToken(this.data.blocks[this.block]);
  }

  listPredictions(image) {
    if (this.listed === image) return;
    this.listed = image;
    this.table.replaceChildren(...(image.predictions ? predictionTable(image.predictions, this.data.pruned) : [
      element("p", { class: "soft" }, "The model has no classifier, so there are no predictions to compare."),
    ]));
  }
}

function predictionTable(predictions, pruned) {
  const models = pruned ? ["dense", "pruned"] : ["dense"];
  const best = Object.fromEntries(models.map((model) => [model, Math.max(...predictions.map((entry) => entry[model]))]));
  const rows = predictions.map((entry) => element("tr", {},
    element("th", { scope: "row" }, entry.name),
    ...models.map((model) => {
      const filling = element("i");
      filling.style.width = `${100 * entry[model]}%`;
      const value = element(entry[model] === best[model] ? "b" : "em", {}, percent(entry[model]));
      return element("td", { class: model }, element("div", { class: "bar" }, element("span", { "aria-hidden": "true" }, filling), value));
    })));
  const heads = ["Class", ...models.map((model) => `${capital(model)} model`)];
  return [
    element("h3", {}, "Predictions"),
    element("p", { class: "soft" }, pruned ? "The five likeliest classes of either model; each model's first is bold." : "The five likeliest classes."),
    element("div", { class: "scroll" }, element("table", {},
      element("thead", {}, element("tr", {}, ...heads.map((head) => element("th", { scope: "col" }, head)))),
      element("tbody", {}, ...rows))),
  ];
}

function changesClass(image) {
  if (image.predictions === null || image.predictions[0].pruned === undefined) return false;
  const likeliest = (model) => image.predictions.reduce((best, entry) => (entry[model] > best[model] ? entry : best));
  return likeliest("dense") !== likeliest("pruned");
}

function extremes(values, block) {
  const present = [...values.keys()].filter((token) => !Number.isNaN(values[token]));
  const highest = present.reduce((best, token) => (values[token] > values[best] ? token : best), present[0]);
  return `Largest in row ${Math.floor(highest / block.columns)}, column ${highest % block.columns}: ${written(values[highest])}.`;
}

function capital(word) {
  return word[0].toUpperCase() + word.slice(1);
}
