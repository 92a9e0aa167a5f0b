// The page that computes: the first twenty steps of some rules, where they part, and their calls.
"use strict";

const STEPS = 20;
const PRESETS = {
  "constant": () => 1,
  "noise": (t) => [0.9, -1.3, 0.4, 1.8, -0.6, -0.2, 1.1, -1.7, 0.3, 0.8][t % 10],
  "a late spike": (t) => (t === 11 ? 20 : 0.5),
  "shrinking": (t) => 2 * 0.8 ** t,
  "tiny": () => 1e-4,
  "changing sign": (t) => (t % 2 ? -1 : 1),
};
const OWN = "Your own switches";
const BOUNDS = {
  lr: ["η, the rate", 0.01, (x) => x >= 0, "not below 0"],
  decay: ["ρ, the decay", 0.9, (x) => x >= 0 && x < 1, "in [0, 1)"],
  momentum: ["μ, the momentum", 0.9, (x) => x >= 0 && x < 1, "in [0, 1)"],
  eps: ["ε", 1e-3, (x) => x > 0, "above 0"],
  weight_decay: ["λ, the weight decay", 0, (x) => x >= 0, "not below 0"],
  start: ["the parameter", 1, () => true, "a number"],
  drop: ["then the rate, times", 0.1, (x) => x >= 0, "not below 0"],
  at: ["from step", 11, (x) => Number.isInteger(x) && x >= 1, "a whole number from 1"],
};
const SWITCHES = {
  eps_mode: ["ε", { inside: "√(ν+ε)", outside: "√ν+ε", max: "max(√ν, ε)" }],
  v_init: ["ν starts at", { 0: "0", 1: "1" }],
  lr_place: ["the rate", { inside: "in the buffer", outside: "after the buffer" }],
  centered: ["divided by", { false: "root mean square", true: "standard deviation" }],
  nesterov: ["momentum", { false: "plain", true: "Nesterov's" }],
  weight_decay_kind: ["weight decay", { coupled_l2: "L2", decoupled: "decoupled" }],
  bias_correction: ["bias correction", { false: "no", true: "yes" }],
};

const inputs = {};
const rules = [];

function numberField(name) {
  const [label, value, , help] = BOUNDS[name];
  inputs[name] = element("input", { id: `number-${name}`, value, inputmode: "decimal", oninput: update });
  return field(label, inputs[name], help);
}

function choiceField(label, options, change, id) {
  const made = Object.entries(options).map(([value, text]) => element("option", { value }, text));
  const select = element("select", { onchange: change, ...(id ? { id } : {}) }, ...made);
  return [select, field(label, select)];
}

// A card: a framework, or every switch.
function addRule(framework) {
  const rule = { switches: {} };
  const rows = TRUTH.filter((row) => row.rule);
  const names = Object.fromEntries([...rows.map((row) => [row.framework, row.framework]), [OWN, OWN]]);
  const [choice, chosen] = choiceField("rule", names, () => redraw());
  const centered = element("input", { type: "checkbox", onchange: update });
  const center = field("centred", centered);
  const switches = Object.entries(SWITCHES).map(([name, [label, options]]) => {
    const [select, made] = choiceField(label, options, update);
    rule.switches[name] = select;
    return made;
  });
  const panel = element("div", { class: "rms-row" }, ...switches);
  const call = element("div", { class: "rms-call" });
  const remove = () => {
    rules.splice(rules.indexOf(rule), 1);
    card.remove();
    update();
  };
  const button = element("button", { type: "button", onclick: remove, "aria-label": "remove this rule" }, "×");
  const card = element(
    "div",
    { class: "rms-box rms-rule" },
    element("div", { class: "rms-row" }, chosen, center, button),
    panel,
    call,
  );
  const redraw = () => {
    const row = TRUTH.find((row) => row.framework === choice.value);
    panel.hidden = Boolean(row);
    center.hidden = !row?.centering;
    centered.checked = Boolean(row?.rule.centered);
    update();
  };
  Object.assign(rule, { choice, centered, card, call });
  choice.value = framework;
  rules.push(rule);
  document.getElementById("rules").append(card);
  redraw();
}

function numbersOf() {
  const numbers = {};
  for (const [name, [label, , holds, help]] of Object.entries(BOUNDS)) {
    const text = inputs[name].value.trim();
    numbers[name] = Number(text);
    if (text === "" || !Number.isFinite(numbers[name]) || !holds(numbers[name]))
      throw new RangeError(`${label} must be ${help}, got "${inputs[name].value}"`);
  }
  return numbers;
}

function gradientsOf() {
  const words = inputs.gradients.value.split(/[\s,]+/).filter(Boolean);
  const gradients = words.map(Number);
  const bad = words.find((word, i) => !Number.isFinite(gradients[i]));
  if (bad !== undefined) throw new RangeError(`a gradient must be a number, got "${bad}"`);
  if (!words.length) throw new RangeError("there must be a gradient at least");
  return gradients.slice(0, STEPS).map((g) => [g]);
}

function computed(rule, numbers, gradients) {
  const { drop, at } = numbers;
  const rates = ratesOf(numbers.lr, drop, at, gradients.length);
  const row = TRUTH.find((row) => row.framework === rule.choice.value);
  if (row) {
    const after = trajectory(ruleOf(row, numbers, rule.centered.checked), [numbers.start], gradients, rates);
    return { after: after.flat(), call: callOf(row, numbers, rule.centered.checked, drop, at) };
  }
  const own = { ...numbers };
  for (const [name, select] of Object.entries(rule.switches))
    own[name] = { true: true, false: false, 0: 0, 1: 1 }[select.value] ?? select.value;
  const after = trajectory(own, [numbers.start], gradients, rates);
  return { after: after.flat(), call: chainOf(own, drop, at) };
}

// The first step after which two rules are apart by a hundredth of the way so far; -1 if none is.
function parting(one, other) {
  return one.findIndex((p, t) => {
    const way = Math.max(Math.abs(p - one[0]), Math.abs(other[t] - one[0]));
    return Math.abs(p - other[t]) > 0.01 * way;
  });
}

function partings(all) {
  const [first, ...others] = rules.map((rule) => rule.choice.value);
  const told = others.map((name, i) => {
    const step = parting(all[0], all[i + 1]);
    return step > 0 ? `${name} parts from ${first} at step ${step}` : `${name} agrees with ${first}`;
  });
  return told.length ? `${told.join("; ")}.` : "";
}

function plot(all) {
  const [width, height, left, bottom] = [640, 260, 60, 24];
  const values = all.flat();
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const span = high - low || 1;
  const x = (t) => left + (t * (width - left - 10)) / Math.max(all[0].length - 1, 1);
  const y = (p) => 8 + ((high - p) * (height - bottom - 16)) / span;
  const words = [low, (low + high) / 2, high].flatMap((p) => [
    element("line", { x1: left, x2: width - 10, y1: y(p), y2: y(p), class: "rms-grid" }),
    element("text", { x: left - 6, y: y(p) + 4, "text-anchor": "end" }, p.toPrecision(4)),
  ]);
  const steps = [0, 5, 10, 15, 20].filter((t) => t < all[0].length);
  words.push(...steps.map((t) => element("text", { x: x(t), y: height - 6, "text-anchor": "middle" }, `${t}`)));
  const lines = all.map((after, i) => {
    const d = after.map((p, t) => `${t ? "L" : "M"}${x(t).toFixed(1)},${y(p).toFixed(1)}`).join("");
    return element("path", { d, class: `rms-line rms-line-${i % 6}` });
  });
  const label = "the parameter after each step, a line for each rule";
  return element("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label }, ...words, ...lines);
}

function tableOf(all, gradients, parted) {
  const cells = (tag, values) => values.map((value) => element(tag, {}, value));
  const names = rules.map((rule) => rule.choice.value);
  const head = element("tr", {}, ...cells("th", ["step", "gradient", ...names]));
  const lines = gradients.map(([g], t) =>
    element(
      "tr",
      { class: parted.includes(t + 1) ? "rms-parting" : "" },
      ...cells("td", [`${t + 1}`, `${g}`, ...all.map((after) => after[t + 1].toPrecision(7))]),
    ),
  );
  return element("table", { class: "table" }, element("thead", {}, head), element("tbody", {}, ...lines));
}

function update() {
  const [sentence, picture, table] = ["sentence", "picture", "steps"].map((id) => document.getElementById(id));
  if (!rules.length) return [sentence, picture, table].forEach((place) => place.replaceChildren());
  try {
    const numbers = numbersOf();
    const gradients = gradientsOf();
    const results = rules.map((rule) => computed(rule, numbers, gradients));
    const all = results.map((result) => result.after);
    const parted = all.slice(1).map((after) => parting(all[0], after));
    results.forEach(({ call }, i) => {
      rules[i].call.replaceChildren(code(`tx = ${call}`));
      rules[i].card.style.setProperty("--rms-own", `var(--rms-${i % 6})`);
    });
    sentence.textContent = partings(all);
    picture.replaceChildren(plot(all));
    table.replaceChildren(tableOf(all, gradients, parted));
  } catch (error) {
    if (!(error instanceof RangeError)) throw error;
    sentence.textContent = error.message;
    picture.replaceChildren();
    table.replaceChildren();
  }
}

function fill(preset) {
  inputs.gradients.value = Array.from({ length: STEPS }, (_, t) => Number(PRESETS[preset](t).toPrecision(6))).join(", ");
}

function main() {
  const names = Object.fromEntries(Object.keys(PRESETS).map((name) => [name, name]));
  const [preset, chosen] = choiceField("gradients", names, () => (fill(preset.value), update()), "preset");
  inputs.gradients = element("textarea", { id: "gradients", rows: 3, oninput: update, spellcheck: "false" });
  fill("constant");
  const shared = Object.keys(BOUNDS).map(numberField);
  const add = element("button", { type: "button", id: "add", onclick: () => addRule(OWN) }, "Add a rule");
  document.getElementById("compare").append(
    element("div", { class: "rms-box" }, element("div", { class: "rms-row" }, chosen, ...shared), field("one for each step", inputs.gradients)),
    element("div", { id: "rules" }),
    add,
    element("p", { id: "sentence", "aria-live": "polite" }),
    element("div", { id: "picture" }),
    element("div", { id: "steps" }),
  );
  ["PyTorch 2.13", "TensorFlow 1 (2.21's compat.v1)", "Keras 3.15 (JAX, TensorFlow, PyTorch)"].forEach(addRule);
}

main();
