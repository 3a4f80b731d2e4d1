"use strict";

// What the page does. State lives in the address (#sort=top1&order=descending&family=van,cswin&model=tiny&gflops=0..10), so that a view
// can be linked to. Functions that touch no document come first; tests call them without a browser.

const RANGES = ["params", "gflops", "top1"];
const AXES = {
  params: { name: "parameters, M", unit: "M parameters" },
  gflops: { name: "GFLOPs", unit: "GFLOPs" },
  cpu: { name: "images a second on a CPU", unit: "images a second" },
  gpu: { name: "images a second on a GPU", unit: "images a second" },
};
const SHAPES = [
  "M-5 0a5 5 0 1 0 10 0a5 5 0 1 0 -10 0z",
  "M-5 -5h10v10h-10z",
  "M0 -6L6 5H-6z",
  "M0 -7L6 0L0 7L-6 0z",
  "M0 6L6 -5H-6z",
  "M-2 -6h4v4h4v4h-4v4h-4v-4h-4v-4h4z",
  "M-6 -3h12v6h-12z",
  "M-3 -6h6v12h-6z",
  "M-6 -6L0 -2L6 -6L2 0L6 6L0 2L-6 6L-2 0z",
];

/** The state that an address holds; what it does not hold is as at first. */
function parseState(hash, families) {
  const given = new URLSearchParams(hash.replace(/^#/, ""));
  const state = { sort: given.get("sort") || "", order: given.get("order") === "descending" ? "descending" : "ascending" };
  state.axis = Object.hasOwn(AXES, given.get("axis") || "") ? given.get("axis") : "params";
  const wanted = given.has("family") ? given.get("family").split(",") : families;
  state.family = families.filter((family) => wanted.includes(family));
  state.model = given.get("model") || "";
  for (const key of RANGES) {
    const [low, high] = (given.get(key) || "..").split("..");
    state[key] = [number(low), number(high)];
  }
  return state;
}

/** The address of a state; what is as at first is left out. */
function formatState(state, families) {
  const parts = new URLSearchParams();
  if (state.sort) {
    parts.set("sort", state.sort);
    parts.set("order", state.order);
  }
  if (state.axis !== "params") parts.set("axis", state.axis);
  if (state.family.length !== families.length) parts.set("family", state.family.join(","));
  if (state.model) parts.set("model", state.model);
  for (const key of RANGES) {
    const [low, high] = state[key];
    if (low !== null || high !== null) parts.set(key, `${low === null ? "" : low}..${high === null ? "" : high}`);
  }
  return parts.toString().replaceAll("%2C", ",");
}

function number(text) {
  return text === undefined || text.trim() === "" || Number.isNaN(Number(text)) ? null : Number(text);
}

/** Whether a model is shown. Where a bound is set, what is unknown is not. */
function passes(model, state) {
  return (
    state.family.includes(model.family) &&
    state.model.toLowerCase().split(/\s+/).every((part) => model.name.toLowerCase().includes(part)) &&
    RANGES.every((key) => {
      const [low, high] = state[key];
      if (low === null && high === null) return true;
      const value = model[key];
      return value !== null && (low === null || value >= low) && (high === null || value <= high);
    })
  );
}

/** Models in order; what is unknown stands last in both directions, equals keep their order. */
function sorted(models, key, order) {
  if (!key) return [...models];
  const sign = order === "descending" ? -1 : 1;
  return [...models].sort((a, b) => {
    const [x, y] = [a[key], b[key]];
    if (x === null || y === null) return (x === null) - (y === null);
    return sign * (typeof x === "string" ? x.localeCompare(y, "en", { numeric: true }) : x - y);
  });
}

/** Round values between two positive ones, for an axis of logarithms: of the coarsest kind that has three or more. */
function logTicks(low, high) {
  const inside = (value) => value >= low * 0.999 && value <= high * 1.001;
  const powers = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power += 1) powers.push(power);
  for (const digits of [[1, 2, 5], [1, 2, 3, 4, 5, 6, 7, 8, 9]]) {
    const found = powers.flatMap((power) => digits.map((digit) => digit * 10 ** power)).filter(inside);
    if (found.length >= 3) return found.map((value) => Number(value.toPrecision(3)));
  }
  const rough = (high - low) / 8; // of 1, 2, 5 and 10 the next above leaves three or more
  const unit = 10 ** Math.floor(Math.log10(rough));
  const step = unit * [1, 2, 5, 10].find((times) => times * unit >= rough * 0.999);
  const found = [];
  for (let i = Math.ceil((low * 0.999) / step); inside(i * step); i += 1) found.push(Number((i * step).toPrecision(6)));
  return found;
}

/** What the plot shows: models with accuracy and with a value on the axis. */
function points(models, axis) {
  return models.filter((model) => model.top1 !== null && model[axis] !== null);
}

/** Models that pass but for a bound on a value of theirs that is unknown. */
function unknown(models, state) {
  const open = (model) => ({ ...state, ...Object.fromEntries(RANGES.filter((key) => model[key] === null).map((key) => [key, [null, null]])) });
  return models.filter((model) => !passes(model, state) && passes(model, open(model)));
}

/** How many models are shown, and why others may be missed. */
function counted(models, state) {
  const kept = models.filter((model) => passes(model, state)).length;
  const hidden = unknown(models, state).length;
  const crossed = RANGES.some((key) => state[key][0] !== null && state[key][1] !== null && state[key][0] > state[key][1]);
  const why = hidden ? `; ${hidden} more ${hidden === 1 ? "has" : "have"} no published value to compare with the bounds` : "";
  return `${kept} of ${models.length} models shown${crossed ? "; a lower bound is above the upper one" : why}`;
}

/** The plot of the models that pass, in words. */
function describe(kept, axis) {
  const { name, unit } = AXES[axis];
  const shown = points(kept, axis);
  if (!kept.length) return "No model passes the filters.";
  if (!shown.length) return `No model is shown that has a published top-1 accuracy and a value for ${name}; unmeasured is left blank.`;
  const [low, high] = ["ascending", "descending"].map((order) => sorted(shown, "top1", order)[0]);
  const say = (model) => `${model.name}, ${model.top1} % at ${Number(model[axis].toPrecision(4))} ${unit}`;
  return `${shown.length} models: from ${say(low)}, to ${say(high)}. The table below holds the same numbers.`;
}

if (typeof module !== "undefined") module.exports = { parseState, formatState, passes, sorted, logTicks, points, unknown, counted, describe };
else start();

function start() {
  const models = JSON.parse(document.getElementById("models").textContent);
  const families = [...new Set(models.map((model) => model.family))];
  const body = document.querySelector("tbody");
  const rows = [...body.rows];
  const form = document.getElementById("filters");
  const axis = document.getElementById("axis");
  let state = parseState(location.hash, families);

  function show() {
    const kept = sorted(models.filter((model) => passes(model, state)), state.sort, state.order);
    body.replaceChildren(...kept.map((model) => rows[models.indexOf(model)]));
    document.getElementById("count").textContent = counted(models, state);
    for (const button of document.querySelectorAll("thead button"))
      button.closest("th").setAttribute("aria-sort", button.value === state.sort ? state.order : "none");
    document.getElementById("said").textContent = describe(kept, state.axis);
    document.getElementById("picture").replaceChildren(...drawing(points(kept, state.axis), state.axis, families));
  }

  function fill() {
    for (const box of form.elements["family"]) box.checked = state.family.includes(box.value);
    form.elements["model"].value = state.model;
    for (const key of RANGES)
      ["low", "high"].forEach((end, i) => (form.elements[`${key}-${end}`].value = state[key][i] === null ? "" : state[key][i]));
    axis.value = state.axis;
  }

  function changed() {
    try {
      history.replaceState(null, "", `#${formatState(state, families)}`);
    } catch {
      // where a page may not change its address, a view cannot be linked to, and all else works
    }
    show();
  }

  form.addEventListener("input", () => {
    state.family = [...form.elements["family"]].filter((box) => box.checked).map((box) => box.value);
    state.model = form.elements["model"].value.trim();
    for (const key of RANGES) state[key] = ["low", "high"].map((end) => number(form.elements[`${key}-${end}`].value));
    changed();
  });
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", (event) => {
    event.preventDefault();
    state = { ...parseState("", families), sort: state.sort, order: state.order, axis: state.axis };
    fill();
    changed();
  });
  axis.addEventListener("change", () => {
    state.axis = axis.value;
    changed();
  });
  document.querySelector("thead").addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (!button) return;
    state.order = state.sort === button.value && state.order === "ascending" ? "descending" : "ascending";
    state.sort = button.value;
    changed();
  });
  document.querySelector(".skip").addEventListener("click", (event) => {
    event.preventDefault(); // the address holds the view
    document.getElementById("table").focus();
    document.getElementById("table").scrollIntoView();
  });
  addEventListener("hashchange", () => {
    state = parseState(location.hash, families);
    fill();
    show();
  });
  document.getElementById("plot").hidden = false;
  fill();
  show();
}

function element(name, attributes, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

/** The parts of the picture: axes, and a mark for each model, whose shape and colour are its family's. */
function drawing(shown, axis, families) {
  const [left, right, top, bottom] = [60, 700, 15, 345];
  const text = (x, y, anchor, words) => element("text", { x, y, "text-anchor": anchor }, words);
  if (!shown.length) return [text((left + right) / 2, (top + bottom) / 2, "middle", "nothing to plot")];
  const xs = shown.map((model) => model[axis]);
  const ys = shown.map((model) => model.top1);
  const low = Math.min(...xs) * 0.85;
  const high = Math.max(...xs) * 1.15;
  const floor = Math.floor(Math.min(...ys)) - 0.5;
  const roof = Math.ceil(Math.max(...ys)) + 0.5;
  const x = (value) => left + ((right - left) * Math.log(value / low)) / Math.log(high / low);
  const y = (value) => bottom - ((bottom - top) * (value - floor)) / (roof - floor);
  const parts = [];
  for (const tick of logTicks(low, high)) {
    parts.push(element("path", { class: "grid", d: `M${x(tick).toFixed(1)} ${top}V${bottom}` }));
    parts.push(text(x(tick).toFixed(1), bottom + 20, "middle", `${tick}`));
  }
  const step = roof - floor > 8 ? 2 : 1;
  for (let tick = Math.ceil(floor / step) * step; tick <= roof; tick += step) {
    parts.push(element("path", { class: "grid", d: `M${left} ${y(tick).toFixed(1)}H${right}` }));
    parts.push(text(left - 8, (y(tick) + 4).toFixed(1), "end", `${tick} %`));
  }
  parts.push(text((left + right) / 2, bottom + 42, "middle", AXES[axis].name));
  for (const model of shown) {
    const i = families.indexOf(model.family);
    const title = element("title", {}, `${model.name}: ${model.top1} % at ${Number(model[axis].toPrecision(4))} ${AXES[axis].unit}`);
    const place = `translate(${x(model[axis]).toFixed(1)} ${y(model.top1).toFixed(1)})`;
    const mark = element("path", { class: "mark", d: SHAPES[i % SHAPES.length], fill: `var(--f${i % 9})` }, title);
    parts.push(element("g", { transform: place }, mark));
  }
  return parts;
}
