// RMSprop as one function of its switches, the switches of a row of the table, and its call.
"use strict";

const DENOMINATORS = {
  inside: (square, eps) => Math.sqrt(square + eps),
  outside: (square, eps) => Math.sqrt(square) + eps,
  max: (square, eps) => Math.max(Math.sqrt(square), eps),
  both: (square, eps) => Math.sqrt(square + eps) + eps,
  inside_minus: (square, eps) => Math.sqrt(Math.max(square - eps, 0)),
  none: (square) => Math.sqrt(square),
};

const clip = (x, bound) => Math.min(Math.max(x, -bound), bound);

// The parameters before the first step and after each. `gradients` has a row of numbers for a step,
// `rates` a number for each. The variance is a sum of squares, as in `scale_by_stddev`: it equals
// the average of g² less the square of the average of g, and rounding cannot make it negative.
function trajectory(rule, start, gradients, rates) {
  const { decay, eps, momentum, weight_decay: lambda } = rule;
  const denominator = DENOMINATORS[rule.eps_mode];
  const corrected = rule.bias_correction || rule.debias === "ema";
  const weights = start.map(() => ({ square: rule.v_init, mean: 0, buffer: 0 }));
  const after = [start];
  gradients.forEach((row, t) => {
    const before = corrected ? 1 - decay ** t : 1;
    const correction = corrected ? 1 - decay ** (t + 1) : 1;
    const rate = rates[t];
    const p = after[t];
    let g = row.map((x) => x * (rule.gradient_scale ?? 1) * (rule.maximize ? -1 : 1));
    if (rule.clip_norm) {
      const length = Math.hypot(...g);
      g = g.map((x) => (x * rule.clip_norm) / Math.max(length, rule.clip_norm));
    }
    const bounded = (x) => (rule.clip_value ? clip(x, rule.clip_value) : x);
    if (rule.clip_order !== "after_l2") g = g.map(bounded);
    if (rule.weight_decay_kind === "coupled_l2") g = g.map((x, i) => x + lambda * p[i]);
    if (rule.clip_order === "after_l2") g = g.map(bounded);
    let steps = g.map((x, i) => {
      const w = weights[i];
      let deviation = x * x;
      if (rule.centered) {
        w.mean = decay * w.mean + (1 - decay) * x;
        const share = before === 0 || decay === 0 ? 0 : correction / before / decay;
        deviation = (x - w.mean / correction) ** 2 * share;
      }
      w.square = decay * w.square + (1 - decay) * deviation;
      let square = w.square / correction;
      if (rule.centered && corrected && t === 0 && square === 0) square = x * x;
      const divisor = denominator(square, eps);
      const shrunk = rule.weight_decay_kind === "in_buffer" ? lambda * p[i] : 0;
      const u = (divisor === 0 ? 0 : x / divisor) + shrunk;
      const inside = rule.lr_place === "inside" ? rate : 1;
      w.buffer = momentum * w.buffer + inside * u;
      const b = rule.nesterov ? inside * u + momentum * w.buffer : w.buffer;
      return rule.lr_place === "inside" ? b : rate * b;
    });
    if (rule.caution && momentum) {
      const taken = steps.map((b, i) => (b * g[i] > 0 ? 1 : 0));
      const share = taken.reduce((a, b) => a + b) / taken.length;
      steps = steps.map((b, i) => (b * taken[i]) / Math.max(share, 1e-3));
    }
    const shrinking = {
      decoupled: rate * lambda,
      decoupled_corrected: (rate * rate * lambda) / rule.lr_max,
    }[rule.weight_decay_kind] ?? 0;
    const moved = p.map((x, i) => x - shrinking * x - steps[i]);
    after.push(rule.clip_weights ? moved.map((x) => clip(x, rule.clip_weights)) : moved);
  });
  return after;
}

// The rule of a row with these numbers: `lr`, `decay`, `momentum`, `eps`, `weight_decay`.
function ruleOf(row, numbers, centered) {
  const given = Object.fromEntries(Object.keys(row.arguments).map((name) => [name, numbers[name]]));
  const rule = { decay: 0, eps: 0, momentum: 0, weight_decay: 0, ...row.rule, ...given };
  if (row.centering) rule.centered = centered;
  if (row.buffer === "if centered" && !rule.centered) rule.momentum = 0;
  if (typeof rule.eps_mode === "object") {
    const setting = rule.centered ? (rule.momentum ? "both" : "centered") : rule.momentum ? "momentum" : "plain";
    rule.eps_mode = rule.eps_mode[setting];
  }
  if (rule.v_init === "ε") rule.v_init = rule.eps;
  return rule;
}

// The rate of each step: `drop` times as large from step `at` on (the first is 1).
function ratesOf(lr, drop, at, count) {
  return Array.from({ length: count }, (_, t) => (t + 1 < at ? lr : lr * drop));
}

// How the rate is written in Python; `first` is what a schedule sees at the first update.
function rateText(lr, drop, at, first = 0) {
  return drop === 1 ? `${lr}` : `lambda count: jnp.where(count < ${at - 1 + first}, ${lr}, ${lr * drop})`;
}

// The call for a row: what it gives already, and the numbers that differ from the row's own.
function callOf(row, numbers, centered, drop = 1, at = 1) {
  if (row.factory === "optax_rmsprop.chain") return chainOf(ruleOf(row, numbers, centered), drop, at);
  const words = { ...row.written };
  for (const [name, [argument, template]] of Object.entries(row.arguments)) {
    const text = name === "lr" ? rateText(numbers.lr, drop, at, row.first_count) : `${numbers[name]}`;
    const own = numbers[name] === row.numbers[name] && (name !== "lr" || drop === 1);
    if (!own || words[argument] === "learning_rate") words[argument] = template.replace("{}", text);
  }
  if (row.centering && centered !== row.rule.centered) words.centered = centered ? "True" : "False";
  if (row.rule.v_init === "ε") words.initial_scale = `${numbers.eps}`;
  const order = Object.entries(words).map(([name, text]) => `${name}=${text}`);
  return `${row.factory}(${order.join(", ")})`;
}

// The chain of links for any switches, also where no framework has them together.
function chainOf(rule, drop = 1, at = 1) {
  const name = "optax_rmsprop";
  const rate = rateText(rule.lr, drop, at);
  const options = [`${rule.decay}`, `${rule.eps}`, `initial_scale=${rule.v_init}`];
  const modes = { inside: "True", outside: "False", max: `${name}.denominators.eps_floor` };
  options.push(`eps_in_sqrt=${modes[rule.eps_mode]}`);
  if (rule.bias_correction) options.push("bias_correction=True");
  const scale = `${name}.${rule.centered ? "scale_by_stddev" : "scale_by_rms"}(${options.join(", ")})`;
  const step = `${name}.scale_by_learning_rate(${rate})`;
  const trace = `${name}.trace(${rule.momentum}${rule.nesterov ? ", nesterov=True" : ""})`;
  const buffer = rule.momentum ? [trace] : [];
  const decay = (more) => (rule.weight_decay ? [`${name}.add_decayed_weights(${rule.weight_decay}${more})`] : []);
  const links = [
    ...(rule.weight_decay_kind === "coupled_l2" ? decay("") : []),
    scale,
    ...(rule.weight_decay_kind === "in_buffer" ? decay("") : []),
    ...(rule.lr_place === "inside" ? [step, ...buffer] : [...buffer, step]),
    ...(rule.weight_decay_kind === "decoupled" ? decay(`, ${rate}`) : []),
  ];
  return `${name}.chain(\n    ${links.join(",\n    ")},\n)`;
}
