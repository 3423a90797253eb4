"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const root = document.documentElement;

// --- light and dark

const themeButton = document.getElementById("theme");
const systemDark = matchMedia("(prefers-color-scheme: dark)");
const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : systemDark.matches);

function stored(key, value) {
  // A page opened from disk may have no storage; then the choice lasts as long as the page.
  try {
    if (value === undefined) return localStorage.getItem(key);
    localStorage.setItem(key, value);
  } catch { return null; }
}

function showTheme() {
  themeButton.textContent = isDark() ? "Light colours" : "Dark colours";
  panels.forEach((panel) => panel.drawn && panel.draw());
}

themeButton.addEventListener("click", () => {
  root.dataset.theme = isDark() ? "light" : "dark";
  stored("theme", root.dataset.theme);
  showTheme();
});
systemDark.addEventListener("change", showTheme);

// --- the claims' filters, kept in the address so that a filtered table can be linked to

const form = document.getElementById("filters");
const rows = [...document.querySelectorAll("#verdicts tbody tr")];
const folds = [...document.querySelectorAll("#verdicts > details")];

function filter() {
  const wanted = Object.fromEntries(new FormData(form));
  const fits = (row) => Object.entries(wanted).every(([key, value]) => !value || row.dataset[key].split(" ").includes(value));
  let shown = 0;
  for (const row of rows) {
    row.hidden = !fits(row);
    shown += !row.hidden;
  }
  // An experiment is folded until a filter asks for some of its claims.
  const asked = Object.values(wanted).some(Boolean);
  for (const fold of folds) {
    fold.hidden = !fold.querySelector("tbody tr:not([hidden])");
    fold.open = asked && !fold.hidden;
  }
  document.getElementById("count").textContent = `${shown} of ${rows.length} claims`;
  const set = new URLSearchParams(Object.entries(wanted).filter(([, value]) => value));
  const hash = String(set);
  if (hash || location.hash.includes("=")) history.replaceState(null, "", hash ? `#${hash}` : "#claims");
}

function filterFromAddress() {
  if (!location.hash.includes("=")) return;
  for (const [key, value] of new URLSearchParams(location.hash.slice(1))) {
    const select = form.elements[key];
    if (select && [...select.options].some((option) => option.value === value)) select.value = value;
  }
}

form.addEventListener("change", filter);
form.addEventListener("reset", () => setTimeout(filter));  // after the fields are back at "all"
addEventListener("hashchange", () => { filterFromAddress(); filter(); });

// --- curves

const norms = Object.keys(data.palette);
const short = (value) => (value === null || value === undefined ? "–" : Number(value.toPrecision(4)).toString());

let plotly = null;
function loadPlotly() {
  plotly ??= (async () => {
    const packed = Uint8Array.from(atob(document.getElementById("plotly").textContent), (c) => c.charCodeAt(0));
    const unpacked = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
    const script = document.createElement("script");
    script.textContent = await new Response(unpacked).text();
    document.head.append(script);
  })();
  return plotly;
}

class Panel {
  constructor(element) {
    Object.assign(this, { element, ...data.plots[element.dataset.key], drawn: false });
    this.canvas = element.querySelector(".plot");
    this.select = element.querySelector("select");
    this.publishedBox = element.querySelector("input[name=published]");
    const groups = { "In the figure": true, "Also measured": false };
    for (const [label, inFigure] of Object.entries(groups)) {
      const group = document.createElement("optgroup");
      group.label = label;
      this.plots.forEach((plot, i) => plot.figure === inFigure && group.append(new Option(plot.title, i)));
      if (group.children.length) this.select.append(group);
    }
    this.chooseAxis();
    this.offerPublished();
    element.addEventListener("change", (event) => {
      if (event.target === this.select) this.chooseAxis();
      if (event.target === this.select || event.target.type === "radio") this.offerPublished();
      this.draw();
    });
    element.hidden = false;
  }

  get plot() { return this.plots[this.select.value]; }
  get axis() { return this.element.querySelector("input[type=radio]:checked").value; }
  get shown() { return [...this.element.querySelectorAll("input[name=norm]:checked")].map((box) => box.value); }
  get axisName() { return this.element.querySelector("input[type=radio]:checked").parentElement.textContent.trim(); }

  // Each quantity starts on its figure's axis.
  chooseAxis() {
    const radios = [...this.element.querySelectorAll("input[type=radio]")];
    (radios.find((radio) => radio.value === this.plot.x) ?? radios[0]).checked = true;
  }

  // The paper's curves are there on the figure's own axis. They start out shown where ours come as far as a quarter of
  // theirs; else they would leave ours a corner of the plot, and the reader asks for them.
  offerPublished() {
    const curves = this.plot.published.filter((curve) => curve.axis === this.axis);
    this.publishedBox.disabled = !curves.length;
    const theirs = Math.max(...curves.flatMap((curve) => curve.x));
    const ours = Math.max(...norms.flatMap((norm) => this.linesOf(norm)).flatMap((line) => this.xOf(line)));
    this.publishedBox.checked = curves.length > 0 && ours >= theirs / 4;
  }

  linesOf(norm) {
    const { experiment, metric } = this.plot;
    return this.lines.filter((line) => line.experiment === experiment && line.norm === norm && metric in line.y);
  }

  xOf(line) {
    return this.axis === "epoch" ? line.y.step.map((step) => step * line.epochsPerStep) : line.y[this.axis];
  }

  trace(line, colour) {
    const mean = line.seed === null;
    const name = data.palette[line.norm].name;
    const who = mean ? `<b>${name}</b>, mean of the seeds` : `<b>${name}</b>, seed ${line.seed}`;
    const ended = line.diverged === undefined ? "" : `<br>diverged at step ${line.diverged}`;
    const last = line.y.step.length - 1;
    const symbol = data.palette[line.norm].marker;
    return {
      x: this.xOf(line), y: line.y[this.plot.metric], name: mean ? name : `${name}, seed ${line.seed}`,
      type: "scatter", mode: mean || ended ? "lines+markers" : "lines", opacity: mean || ended ? 1 : 0.4,
      line: { color: colour, width: mean ? 2.5 : 1 },
      marker: mean
        ? { symbol, size: 8, maxdisplayed: 10, color: colour }
        : { symbol: "x-thin", color: colour, size: line.y.step.map((_, i) => (ended && i === last ? 12 : 0)), line: { color: colour, width: 3 } },
      hovertemplate: `${who}<br>%{y:.4~g} at ${this.axisName} %{x:.4~g}${ended}<extra></extra>`,
    };
  }

  published(colours) {
    if (!this.publishedBox.checked) return [];
    return this.plot.published
      .filter(({ norm, axis }) => axis === this.axis && (this.shown.includes(norm) || !(norm in data.palette)))
      .map(({ norm, x, y }) => {
        const name = data.palette[norm]?.name ?? "original (Kiros et al. 2015)";
        return {
          x, y, name: `published, ${name}`, type: "scatter", mode: "lines",
          line: { color: colours[norm] ?? getComputedStyle(this.canvas).color, dash: "dash", width: 1.5 },
          hovertemplate: `<b>published</b>, ${name}<br>%{y:.4~g} at ${this.axisName} %{x:.4~g}<extra></extra>`,
        };
      });
  }

  async draw() {
    this.drawn = true;
    await loadPlotly();
    const colours = Object.fromEntries(norms.map((norm) => [norm, data.palette[norm][isDark() ? "dark" : "light"]]));
    const drawn = this.shown.flatMap((norm) => this.linesOf(norm).filter((line) => line.y.step.length));
    // The means last, so that they lie on top.
    const traces = drawn.sort((a, b) => (a.seed === null) - (b.seed === null)).map((line) => this.trace(line, colours[line.norm]));
    const style = getComputedStyle(this.canvas);
    const grid = getComputedStyle(document.querySelector("nav")).borderBottomColor;
    const line = { gridcolor: grid, linecolor: grid, zerolinecolor: grid, automargin: true };
    await Plotly.react(this.canvas, [...this.published(colours), ...traces], {
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", showlegend: false, hovermode: "closest",
      font: { family: style.fontFamily, size: 13, color: style.color },
      hoverlabel: { bgcolor: getComputedStyle(document.body).backgroundColor, font: { color: style.color } },
      margin: { l: 60, r: 16, t: 36, b: 60 },
      modebar: { bgcolor: "rgba(0,0,0,0)", color: style.color, activecolor: getComputedStyle(this.select).color },
      // A finger scrolls the page; a mouse zooms.
      dragmode: matchMedia("(pointer: coarse)").matches ? false : "zoom",
      uirevision: `${this.select.value} ${this.axis}`,
      xaxis: { ...line, title: { text: this.axisName, standoff: 10 }, type: this.plot.logX && this.axis === "step" ? "log" : "linear" },
      yaxis: { ...line, title: { text: this.plot.label }, type: this.plot.log ? "log" : "linear", exponentformat: "power" },
    }, { responsive: true, displaylogo: false, modeBarButtons: [["zoom2d", "pan2d", "resetScale2d", "toImage"]] });
    this.tell();
  }

  // What the plot shows, as text.
  tell() {
    const cells = this.shown.map((norm) => {
      const lines = this.linesOf(norm);
      const values = (line) => line.y[this.plot.metric].filter((value) => value !== null);
      const runs = lines.filter((line) => line.seed !== null);
      const ended = runs.filter((line) => line.diverged === undefined).map((line) => values(line).at(-1));
      const diverged = runs.length - ended.length;
      const mean = ended.length ? ended.reduce((a, b) => a + b, 0) / ended.length : null;
      const first = runs.map((line) => values(line)[0]).filter((value) => value !== undefined);
      const start = first.length ? first.reduce((a, b) => a + b, 0) / first.length : null;
      const range = ended.length ? `${short(Math.min(...ended))} to ${short(Math.max(...ended))}` : "–";
      return [data.palette[norm].name, runs.length, short(start), short(mean), range, diverged];
    });
    const { title } = this.plot;
    const said = cells.map(([name, , , end, , lost]) => `${name} ends at ${end}${lost ? `, ${lost} diverged` : ""}`);
    const beside = this.publishedBox.checked ? " The published curves are dashed." : "";
    this.canvas.setAttribute("aria-label", `${title} against ${this.axisName}. ${said.join("; ") || "No norm is chosen"}.${beside}`);
    const table = document.createElement("table");
    table.createCaption().textContent = title;
    const head = table.createTHead().insertRow();
    for (const text of ["Norm", "Runs", "First, mean", "Last, mean", "Last, range over seeds", "Diverged"]) {
      const cell = head.appendChild(document.createElement("th"));
      Object.assign(cell, { scope: "col", textContent: text });
    }
    const body = table.createTBody();
    for (const row of cells) {
      const line = body.insertRow();
      row.forEach((text) => { line.insertCell().textContent = text; });
    }
    this.element.querySelector(".values .scroll").replaceChildren(table);
  }
}

const panels = [...document.querySelectorAll(".curves")].map((element) => new Panel(element));

// One after another, so that the page answers while plots are still being drawn.
async function drawAll() {
  for (const panel of panels) {
    await new Promise((resolve) => setTimeout(resolve));
    try {
      await panel.draw();
    } catch (error) {
      panel.canvas.textContent = `The curves cannot be drawn here: ${error.message}`;
      console.error(error);
    }
  }
}

if (stored("theme")) root.dataset.theme = stored("theme");
showTheme();
themeButton.hidden = false;
form.hidden = false;
filterFromAddress();
filter();
drawAll();
