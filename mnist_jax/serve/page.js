"use strict";
// The program of page.html: a trained network, and what it makes of a drawing.
//
//   the network   arrays in, arrays out: forward, votes, pull, strongest
//   the image     from ink to what the network sees
//   the state     what is drawn, which units are off, what is looked at
//   the view      cells, connections, bars, and what is inside a unit
//   the hands     mouse, pen, finger and keyboard

const $ = (id) => document.getElementById(id);
const about = JSON.parse($("about").textContent);
const [rows, columns] = about.image_shape;
const names = about.class_names;

// ---- The network

const sigmoid = (z) => 1 / (1 + Math.exp(-z));
const ACTIVATIONS = {
  relu: (z) => Math.max(z, 0),
  leaky_relu: (z) => (z > 0 ? z : 0.01 * z),
  elu: (z) => (z > 0 ? z : Math.expm1(z)),
  selu: (z) => 1.0507009873554805 * (z > 0 ? z : 1.6732632423543772 * Math.expm1(z)),
  gelu: (z) => 0.5 * z * (1 + Math.tanh(Math.sqrt(2 / Math.PI) * (z + 0.044715 * z ** 3))),
  silu: (z) => z * sigmoid(z),
  softplus: (z) => Math.max(z, 0) + Math.log1p(Math.exp(-Math.abs(z))),
  sigmoid,
  tanh: Math.tanh,
};
const activate = ACTIVATIONS[about.activation];
const slope = (z) => (activate(z + 1e-4) - activate(z - 1e-4)) / 2e-4;

const bytesOf = (code) => Uint8Array.from(atob(code), (letter) => letter.charCodeAt(0));

/** An array that was written as 24-bit whole numbers of steps. */
function decode({ step, code }) {
  const bytes = bytesOf(code);
  const values = new Float32Array(bytes.length / 3);
  for (let i = 0, at = 0; i < values.length; i++, at += 3) {
    const number = (bytes[at] << 24) | (bytes[at + 1] << 16) | (bytes[at + 2] << 8);
    values[i] = (number >> 8) * step; // the shift keeps the sign
  }
  return values;
}

const layers = about.layers.map(({ units, kernel, bias }) => {
  return { units, kernel: decode(kernel), bias: decode(bias) }; // kernel[input * units + unit]
});
const hidden = layers.slice(0, -1);

/** Adds `inputs` times the kernel of a layer to `sums`; an input of zero costs nothing. */
function weigh({ kernel, units }, inputs, sums) {
  inputs.forEach((input, i) => {
    if (input === 0) return;
    for (let unit = 0, at = i * units; unit < units; unit++, at++) sums[unit] += input * kernel[at];
  });
  return sums;
}

/**
 * What the network makes of pixels in [0, 1], where `keep` has a factor for each hidden unit.
 *
 * Layer l turns `values[l]` into `sums[l]`; those are the logits, or become `values[l + 1]`.
 */
function forward(pixels, keep) {
  const [values, sums] = [[pixels], []];
  layers.forEach((layer, l) => {
    sums.push(weigh(layer, values[l], Float64Array.from(layer.bias)));
    if (layer === layers.at(-1)) return;
    values.push(sums[l].map((z, unit) => keep[l][unit] && keep[l][unit] * activate(z)));
  });
  return { values, sums, keep, logits: sums.at(-1) };
}

function softmax(logits) {
  const most = Math.max(...logits);
  const odds = logits.map((logit) => Math.exp(logit - most));
  const total = odds.reduce((a, b) => a + b);
  return odds.map((odd) => odd / total);
}

/** How the values of hidden layer `l` follow small changes of its sums, or the other way round. */
const followed = ({ sums, keep }, l, changes) =>
  changes.map((change, unit) => change * keep[l][unit] * slope(sums[l][unit]));

/** What a hidden unit adds to each logit: in the last layer exactly, before it to first order. */
function votes(pass, l, unit) {
  const value = pass.values[l + 1][unit];
  const only = pass.values[l + 1].map((_, other) => (other === unit ? value : 0));
  let changes = weigh(layers[l + 1], only, new Float64Array(layers[l + 1].units));
  for (let next = l + 1; next < hidden.length; next++) {
    const moved = followed(pass, next, changes);
    changes = weigh(layers[next + 1], moved, new Float64Array(layers[next + 1].units));
  }
  return changes;
}

/** How each pixel moves the sum of a unit: its weights in the first layer, then the gradient. */
function pull(pass, l, unit) {
  let moves = Float64Array.from({ length: layers[l].units }, (_, other) => Number(other === unit));
  for (; ; l--) {
    const { kernel, units } = layers[l];
    const back = new Float64Array(pass.values[l].length);
    moves.forEach((move, k) => {
      if (move) for (let i = 0; i < back.length; i++) back[i] += move * kernel[i * units + k];
    });
    if (l === 0) return back;
    moves = followed(pass, l - 1, back);
  }
}

/**
 * The connections [product, input, unit] of layer `l` that carry most, the strongest first: of one
 * input, or to one unit, or of all that end in a unit which says something.
 */
function strongest({ values, sums }, l, most, { input, unit } = {}) {
  const found = [];
  let weakest = 0;
  const { kernel, units } = layers[l];
  values[l].forEach((value, i) => {
    if (value === 0 || (input ?? i) !== i) return;
    for (let k = unit ?? 0; k < (unit === undefined ? units : unit + 1); k++) {
      const product = value * kernel[i * units + k];
      if (Math.abs(product) <= weakest) continue;
      if (unit === undefined && (values[l + 1] ?? sums[l])[k] === 0) continue;
      const place = found.findIndex(([other]) => Math.abs(other) < Math.abs(product));
      found.splice(place < 0 ? found.length : place, 0, [product, i, k]);
      if (found.length > most) found.pop();
      if (found.length === most) weakest = Math.abs(found.at(-1)[0]);
    }
  });
  return found;
}

// ---- The image: as digit.py makes it from the ink in a photo

const roundToEven = (x) => (Math.abs(x % 1) === 0.5 ? 2 * Math.round(x / 2) : Math.round(x));

/**
 * Ink on a page becomes an image like those that the network learned from: cropped, scaled to fit
 * 20 of 28 pixels, its centre of mass in the middle. A blank page becomes null.
 */
function toImage(ink, width) {
  let most = 0;
  for (const level of ink) if (level > most) most = level;
  if (most < 32) return null;
  let [left, right, top, bottom] = [width, 0, ink.length / width, 0];
  for (let at = 0; at < ink.length; at++) {
    if (ink[at] <= 0.3 * most) continue;
    const x = at % width;
    const y = (at - x) / width;
    if (x < left) left = x;
    if (x >= right) right = x + 1;
    if (y < top) top = y;
    bottom = y + 1;
  }
  const [wide, tall] = [right - left, bottom - top];
  const box = new Float64Array(wide * tall);
  for (let y = 0; y < tall; y++) {
    const from = (top + y) * width + left;
    box.set(ink.subarray(from, from + wide), y * wide);
  }

  const margin = Math.min(rows, columns) >= 28 ? 8 : 0;
  const ratio = Math.min((rows - margin) / tall, (columns - margin) / wide);
  const [across, down] = [wide, tall].map((side) => Math.max(1, roundToEven(side * ratio)));
  const digit = squeezed(squeezed(box, wide, across), tall, down);

  const [inRows, inColumns] = [new Float64Array(down), new Float64Array(across)];
  digit.forEach((value, at) => {
    inRows[Math.trunc(at / across)] += value;
    inColumns[at % across] += value;
  });
  const corner = start(inRows, rows) * columns + start(inColumns, columns);
  const brightest = Math.max(...digit);
  const image = new Uint8Array(rows * columns);
  digit.forEach((value, at) => {
    const place = corner + Math.trunc(at / across) * columns + (at % across);
    image[place] = roundToEven(255 * (value / brightest));
  });
  return image;
}

/** Rows of `from` pixels, each made `to` pixels long by a triangular filter; then transposed. */
function squeezed(image, from, to) {
  const lines = image.length / from;
  const made = new Float64Array(to * lines);
  const step = from / to;
  const reach = Math.max(step, 1);
  for (let i = 0; i < to; i++) {
    const centre = (i + 0.5) * step;
    const first = Math.max(0, Math.trunc(centre - reach + 0.5));
    const last = Math.min(from, Math.trunc(centre + reach + 0.5));
    let total = 0;
    for (let x = first; x < last; x++) {
      const share = Math.max(0, 1 - Math.abs(x + 0.5 - centre) / reach);
      total += share;
      for (let y = 0; y < lines; y++) made[i * lines + y] += share * image[y * from + x];
    }
    for (let y = 0; y < lines; y++) made[i * lines + y] /= total;
  }
  return made;
}

/** Where a profile begins when its centre of mass lies in the middle of `side` pixels. */
function start(profile, side) {
  const total = profile.reduce((a, b) => a + b);
  const centre = profile.reduce((a, b, i) => a + b * i, 0) / total;
  const place = roundToEven(Math.floor(side / 2) - centre);
  return Math.min(Math.max(place, 0), side - profile.length);
}

// ---- The state

const samples = about.samples.map((sample) => ({ ...sample, pixels: bytesOf(sample.pixels) }));
const nothing = new Uint8Array(rows * columns);
const state = {
  sample: null, // the test image that is shown in place of the drawing
  image: null, // the grey values that the network sees; null for a blank page
  rate: 0, // the share of hidden units that are off by chance
  luck: [], // a number in [0, 1) for each of them: where it is below the rate, the unit is off
  off: hidden.map(() => new Set()), // those that a person switched off
  chosen: null, // the unit {l, unit} that is looked into; beyond the hidden layers, an answer
  pointed: false, // whether the mouse or the keyboard is at it just now
  pass: null, // what `forward` made of the image
  shown: [], // the classes that have a bar: all, or the ten likeliest
};

let asked = false;

/** Changes the state, and the page with the next frame, however much changes until then. */
function set(changes = {}) {
  Object.assign(state, changes);
  if (!asked) requestAnimationFrame(() => update());
  asked = true;
}

function drawLuck() {
  set({ luck: hidden.map(({ units }) => Float64Array.from({ length: units }, Math.random)) });
}

/** A factor for each hidden unit: as in training, those that stay make up for those that do not. */
function kept() {
  const factor = 1 / (1 - state.rate);
  return state.luck.map((luck, l) =>
    luck.map((luck, unit) => (luck < state.rate || state.off[l].has(unit) ? 0 : factor)),
  );
}

function update() {
  asked = false;
  state.image = samples[state.sample]?.pixels ?? toImage(inkOf(pad), pad.width);
  state.pass = forward(Float64Array.from(state.image ?? nothing, (grey) => grey / 255), kept());
  const { logits } = state.pass;
  state.shown = [...names.keys()];
  if (names.length > 10) state.shown.sort((a, b) => logits[b] - logits[a]).length = 10;
  showAnswer();
  showNetwork();
  showUnit();
  showOff();
}

// ---- The view

const pad = $("pad");
const ink = pad.getContext("2d", { willReadFrequently: true });
const overlay = $("connections").getContext("2d");
const boxes = []; // of the cells of each hidden layer
let grids = []; // how they are arranged
let places = []; // for the pixels and each layer: where the middle of a unit is
const count = (number) => number.toLocaleString("en");
const decimal = (x) => (Math.round(100 * x) / 100 + 0).toFixed(2).replace("-", "−");
const percent = (share) => `${(Math.floor(1000 * share) / 10).toFixed(1)} %`;
const colour = (name) => getComputedStyle(document.body).getPropertyValue(`--${name}`);
const largest = (values) => values.reduce((a, b) => Math.max(a, Math.abs(b)), 1e-9);

function inkOf({ width, height }) {
  const { data } = ink.getImageData(0, 0, width, height);
  const levels = new Uint8Array(width * height);
  for (let i = 0; i < levels.length; i++) levels[i] = data[4 * i + 3];
  return levels;
}

/** Puts an image on a canvas; `rgba(value)` is [red, green, blue, alpha]. */
function paint(canvas, values, rgba = (grey) => [0, 0, 0, grey]) {
  [canvas.width, canvas.height] = [columns, rows];
  const picture = new ImageData(columns, rows);
  values.forEach((value, i) => picture.data.set(rgba(value), 4 * i));
  canvas.getContext("2d").putImageData(picture, 0, 0);
}

/** Makes an element with these properties and children. */
function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

/** Writes what never changes, and makes boxes, bars and samples. */
function build() {
  const thing = names.every((name) => /^\d$/.test(name)) ? "digit" : "picture";
  const kind = hidden.length ? `${about.activation}, ` : "";
  const sizes = [rows * columns, ...layers.map(({ units }) => units)].join("-");
  $("title").textContent = document.title = `Draw a ${thing}, and see what the network makes of it`;
  $("intro").textContent =
    `A neural network of ${sizes} units (${kind}seed ${about.seed}) learned from ` +
    `${count(about.train_images)} images of ${about.dataset}; of ${count(about.test_images)} ` +
    `that it has never seen, it misreads ${count(about.test_errors)}.`;
  $("seen-name").textContent = `It sees ${rows} × ${columns}`;
  $("off").hidden = !hidden.length;

  const scale = 336 / Math.max(rows, columns);
  [pad.width, pad.height] = [columns, rows].map((side) => Math.round(scale * side));
  ink.lineCap = ink.lineJoin = "round";
  ink.lineWidth = Math.max(30, scale);

  hidden.forEach(({ units }, l) => {
    const range = { ariaValueMin: 0, ariaValueMax: units - 1, ariaValueNow: 0 };
    const name = { className: "cells", role: "slider", ariaLabel: `Hidden layer ${l + 1}, unit` };
    boxes.push(make("div", { ...name, ...range, tabIndex: 0 }));
    const caption = make("figcaption", { textContent: `${count(units)} units` });
    $("layers").append(make("figure", {}, caption, boxes[l]));
  });

  const longest = Math.max(...names.map((name) => name.length));
  document.body.classList.toggle("short", longest < 3);
  document.body.style.setProperty("--names", `${Math.max(1.2, 0.62 * longest)}em`);
  names.slice(0, 10).forEach(() => {
    const track = make("span", { className: "track" }, make("span", { className: "fill" }));
    const bar = make("button", {}, make("span"), track, make("span", { className: "percent" }));
    $("bars").append(make("li", {}, bar));
  });

  const misread = samples.length && samples.at(-1).read !== samples.at(-1).label;
  const last = misread ? "; the last ones it misreads" : "";
  $("samples-name").textContent = `Or take a test image${last}`;
  samples.forEach(({ label, read, pixels }) => {
    const told = `test image of ${names[label]}${read === label ? "" : `, read as ${names[read]}`}`;
    const input = make("input", { type: "radio", name: "sample", ariaLabel: told });
    const canvas = make("canvas", { className: "picture" });
    paint(canvas, pixels);
    $("samples").append(make("label", { title: told }, input, canvas));
  });
}

/** Fits the cells into the page, and notes where each unit is. */
function measure() {
  const tall = hidden.length > 4 || matchMedia("(width < 900px)").matches;
  document.body.classList.toggle("tall", tall);
  grids = boxes.map((box, l) => {
    const { units } = hidden[l];
    const [width, height] = [box.parentElement.clientWidth, tall ? 190 : 312];
    const across = Math.ceil(Math.sqrt((units * width) / height)) || 1;
    const cell = Math.min(width / across, 24);
    const down = Math.ceil(units / across);
    Object.assign(box.style, { width: `${across * cell}px`, height: `${down * cell}px` });
    return { across, cell };
  });

  const main = $("network").getBoundingClientRect();
  overlay.canvas.width = main.width * devicePixelRatio;
  overlay.canvas.height = main.height * devicePixelRatio;
  const within = (element, across) => {
    const { left, top, width } = element.getBoundingClientRect();
    const [x, y, cell] = [left - main.left, top - main.top, width / across];
    const middle = (position) => (position + 0.5) * cell;
    return (unit) => [x + middle(unit % across), y + middle(Math.trunc(unit / across))];
  };
  const bars = [...$("bars").children].map((bar) => bar.getBoundingClientRect());
  const upright = tall && document.body.classList.contains("short");
  const atBar = (unit) => {
    const { left, top, width } = bars[state.shown.indexOf(unit)];
    return [left - main.left + (upright ? width / 2 : -4), top - main.top + (upright ? 0 : 13)];
  };
  const cells = boxes.map((box, l) => within(box, grids[l].across));
  places = [within($("seen"), columns), ...cells, atBar];
  set();
}

function showAnswer() {
  const { image, sample } = state;
  const shares = softmax(state.pass.logits);
  const best = shares.indexOf(Math.max(...shares));
  const truth = sample === null ? "" : `; it is ${names[samples[sample].label]}`;
  paint($("seen"), image ?? nothing);
  $("name").textContent = image ? names[best] : "–";
  $("name").className = names[best].length > 2 ? "long" : "";
  $("sure").textContent = image ? `${percent(shares[best])} sure${truth}` : "";
  $("hint").textContent = truth ? "A test image.\nDraw to replace it." : image ? "" : "Draw here";
  document.querySelectorAll("#bars button").forEach((bar, row) => {
    const unit = state.shown[row];
    const [name, , share] = bar.children;
    bar.classList.toggle("first", image !== null && unit === best);
    bar.style.setProperty("--share", image ? shares[unit] : 0);
    name.textContent = names[unit];
    share.textContent = image ? percent(shares[unit]) : "";
  });
  say(image ? `${names[best]}, ${$("sure").textContent}` : "");
}

let [said, saying] = ["", 0];

/** Has a screen reader say it, once it has stayed so for a moment. */
function say(text) {
  if (text === said) return;
  said = text;
  clearTimeout(saying);
  saying = setTimeout(() => ($("said").textContent = text), 600);
}

/** Draws the cells of the hidden layers, the connections that carry most, and a ring. */
function showNetwork() {
  const { pass, image, chosen } = state;
  const [lit, unlit, rise, fall] = ["ink", "cell", "for", "against"].map(colour);
  overlay.setTransform(devicePixelRatio, 0, 0, devicePixelRatio, 0, 0);
  overlay.clearRect(0, 0, overlay.canvas.width, overlay.canvas.height);
  grids.forEach(({ cell }, l) => {
    const most = largest(pass.values[l + 1]);
    const square = (unit, side) => {
      const [x, y] = places[l + 1](unit);
      overlay.fillRect(x - side / 2, y - side / 2, side, side);
    };
    const side = cell > 5 ? cell - 1.5 : cell;
    [overlay.fillStyle, overlay.globalAlpha] = [unlit, 1];
    pass.keep[l].forEach((factor, unit) => square(unit, factor ? side : side / 3));
    pass.values[l + 1].forEach((value, unit) => {
      if (!image || !value) return;
      overlay.fillStyle = value > 0 ? lit : fall;
      overlay.globalAlpha = Math.abs(value) / most;
      square(unit, side);
    });
  });
  layers.forEach((_, l) => {
    const only = {};
    if (state.pointed && chosen.l === l) only.unit = chosen.unit;
    else if (state.pointed && chosen.l === l - 1) only.input = chosen.unit;
    else if (state.pointed || !image) return;
    const found = strongest(pass, l, 48, only);
    for (const [product, input, unit] of [...found].reverse()) {
      if (l === hidden.length && !state.shown.includes(unit)) continue;
      const strength = Math.abs(product / found[0][0]);
      overlay.strokeStyle = product > 0 ? rise : fall;
      overlay.globalAlpha = 0.1 + 0.6 * strength;
      overlay.lineWidth = 0.5 + 1.5 * strength;
      connect(places[l](input), places[l + 1](unit));
    }
  });
  if (chosen && chosen.l < hidden.length) {
    const [x, y] = places[chosen.l + 1](chosen.unit);
    const side = grids[chosen.l].cell + 3;
    [overlay.strokeStyle, overlay.globalAlpha, overlay.lineWidth] = [lit, 1, 2];
    overlay.strokeRect(x - side / 2, y - side / 2, side, side);
  }
}

function connect([x, y], [u, v]) {
  const tall = document.body.classList.contains("tall");
  const bends = tall ? [x, (y + v) / 2, u, (y + v) / 2] : [(x + u) / 2, y, (x + u) / 2, v];
  overlay.beginPath();
  overlay.moveTo(x, y);
  overlay.bezierCurveTo(...bends, u, v);
  overlay.stroke();
}

/** Tells of the unit that is looked into: its value, what it looks for, and its vote. */
function showUnit() {
  const { chosen, pass } = state;
  const isAnswer = chosen?.l === hidden.length;
  $("weights").hidden = !chosen;
  $("votes").hidden = $("switch").hidden = !chosen || isAnswer;
  if (!chosen) {
    $("unit-name").textContent = "Inside a unit";
    $("unit-text").textContent = hidden.length
      ? "Point at a unit or an answer to see what it looks for. A click switches a unit off."
      : "Point at an answer to see what it looks for.";
    return;
  }
  const { l, unit } = chosen;
  const pulls = pull(pass, l, unit);
  const most = largest(pulls);
  const [rise, fall] = ["for", "against"].map((name) =>
    colour(name).match(/\w\w/g).map((part) => parseInt(part, 16)),
  );
  paint($("weights"), pulls, (p) => [...(p > 0 ? rise : fall), (255 * Math.abs(p)) / most]);
  const off = !isAnswer && !pass.keep[l][unit];
  const kind = isAnswer ? "score" : "value";
  const told = off ? "off" : `${kind} ${decimal((pass.values[l + 1] ?? pass.logits)[unit])}`;
  const name = isAnswer ? `Answer ${names[unit]}` : `Layer ${l + 1}, unit ${unit}`;
  $("unit-name").textContent = `${name}: ${told}`;
  $("weights").ariaLabel = `What moves its ${kind}`;
  const looks = l ? "In this drawing" : "Its weights";
  const exact = l === hidden.length - 1;
  const adds = exact ? "exactly what it adds to each score." : "what it adds, to first order.";
  const vote = ` The bars are its vote: ${adds}`;
  $("unit-text").textContent =
    `${looks}: ink on red raises its ${kind}, ink on blue lowers it.${isAnswer ? "" : vote}`;
  if (isAnswer) return;
  $("switch").textContent = state.off[l].has(unit) ? "Switch it on" : "Switch it off";
  [boxes[l].ariaValueNow, boxes[l].ariaValueText] = [unit, `unit ${unit}, ${told}`];
  showVotes(votes(pass, l, unit));
}

function showVotes(cast) {
  const most = largest(cast);
  const lines = state.shown.map((unit) => {
    const bar = make("i");
    const [side, colour] = cast[unit] > 0 ? ["left", "for"] : ["right", "against"];
    const width = `${(50 * Math.abs(cast[unit])) / most}%`;
    Object.assign(bar.style, { [side]: "50%", width, background: `var(--${colour})` });
    const cell = make("td", {}, make("div", { className: "vote" }, bar));
    const name = make("th", { textContent: names[unit], scope: "row" });
    return make("tr", {}, name, cell, make("td", { textContent: decimal(cast[unit]) }));
  });
  $("votes").replaceChildren(make("table", {}, ...lines));
}

function showOff() {
  const factors = state.pass.keep.flatMap((keep) => [...keep]);
  const off = factors.filter((factor) => !factor).length;
  $("count").textContent = `${count(off)} of ${count(factors.length)} hidden units are off.`;
  $("rate-name").textContent = `Switch units off at random: ${Math.round(100 * state.rate)} %`;
  $("reset").disabled = !off && !state.rate;
  $("redraw").disabled = !state.rate;
}

// ---- The hands

/** Wipes the pad, and shows a test image or none. */
function take(sample) {
  ink.clearRect(0, 0, pad.width, pad.height);
  document.querySelectorAll("#samples input").forEach((input, i) => (input.checked = i === sample));
  set({ sample });
}

/** Draws from one place of the pad to another; the first stroke replaces a test image. */
function stroke(from, to) {
  if (state.sample !== null) take(null);
  ink.beginPath();
  ink.moveTo(...from);
  ink.lineTo(...to);
  ink.stroke();
  set();
}

function listenToPad() {
  let last = null; // where the pointer that draws was last
  const follow = (event) => {
    const { left, top, width, height } = pad.getBoundingClientRect();
    const shares = [(event.clientX - left) / width, (event.clientY - top) / height];
    const place = [shares[0] * pad.width, shares[1] * pad.height];
    stroke(last ?? place, place);
    last = place;
  };
  pad.onpointerdown = (event) => {
    if (!event.isPrimary || event.button) return;
    pad.setPointerCapture(event.pointerId);
    follow(event);
  };
  pad.onpointermove = (event) => {
    if (!last || !event.isPrimary) return;
    const passed = event.getCoalescedEvents?.() ?? [];
    (passed.length ? passed : [event]).forEach(follow);
  };
  pad.onpointerup = pad.onpointercancel = (event) => event.isPrimary && (last = null);

  const pen = { x: pad.width / 2, y: pad.height / 4, down: false };
  const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  const liftPen = () => {
    pen.down = false;
    showPen();
  };
  const showPen = () => {
    $("pen").style.left = `${(100 * pen.x) / pad.width}%`;
    $("pen").style.top = `${(100 * pen.y) / pad.height}%`;
    $("pen").classList.toggle("down", pen.down);
  };
  pad.onkeydown = (event) => {
    const { x, y } = pen;
    const [right, down] = moves[event.key] ?? [0, 0];
    if (event.key === " ") pen.down = !pen.down;
    else if (event.key === "Escape") {
      take(null);
      liftPen();
    } else if (!(event.key in moves)) return;
    event.preventDefault();
    pen.x = Math.min(Math.max(x + (right * pad.width) / 28, 0), pad.width);
    pen.y = Math.min(Math.max(y + (down * pad.height) / 28, 0), pad.height);
    if (pen.down) stroke([x, y], [pen.x, pen.y]);
    showPen();
  };
  pad.onblur = liftPen;
  showPen();
}

/** Looks into a unit of layer `l`; an answer is one of the layer after the hidden ones. */
const choose = (l, unit) => set({ chosen: { l, unit }, pointed: true });

const leave = () => set({ pointed: false });

/** Switches a hidden unit off, or on again. */
function toggle({ l, unit }) {
  if (!state.off[l].delete(unit)) state.off[l].add(unit);
  set();
}

function listenToCells(box, l) {
  const last = hidden[l].units - 1;
  const chosen = () => (state.chosen?.l === l ? state.chosen.unit : 0);
  const lookAt = (event) => {
    const { left, top } = box.getBoundingClientRect();
    const { across, cell } = grids[l];
    const column = Math.min(Math.trunc((event.clientX - left) / cell), across - 1);
    choose(l, Math.min(Math.trunc((event.clientY - top) / cell) * across + column, last));
  };
  let mouse = true;
  box.onpointermove = lookAt;
  box.onpointerdown = (event) => {
    mouse = event.pointerType === "mouse";
    lookAt(event);
  };
  box.onclick = () => {
    if (mouse) toggle({ l, unit: chosen() }); // a finger only looks; it has a button
  };
  box.onfocus = () => box.matches(":focus-visible") && choose(l, chosen());
  box.onpointerleave = box.onblur = leave;
  box.onkeydown = (event) => {
    const { across } = grids[l];
    const arrows = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -across, ArrowDown: across };
    const move = { ...arrows, Home: -last, End: last }[event.key];
    if (move) choose(l, Math.min(Math.max(chosen() + move, 0), last));
    else if (event.key === "Enter" || event.key === " ") toggle({ l, unit: chosen() });
    else return;
    event.preventDefault();
  };
}

function listen() {
  listenToPad();
  boxes.forEach(listenToCells);
  document.querySelectorAll("#bars button").forEach((bar, row) => {
    bar.onfocus = bar.onpointerenter = () => choose(hidden.length, state.shown[row]);
    bar.onblur = bar.onpointerleave = leave;
  });
  document.querySelectorAll("#samples input").forEach((input, i) => {
    input.onchange = () => take(i);
  });
  $("clear").onclick = () => take(null);
  $("switch").onclick = () => toggle(state.chosen);
  $("redraw").onclick = drawLuck;
  $("rate").oninput = () => set({ rate: Number($("rate").value) });
  $("reset").onclick = () => {
    $("rate").value = 0;
    set({ rate: 0, off: hidden.map(() => new Set()) });
  };
  matchMedia("(prefers-color-scheme: dark)").onchange = () => set();
  new ResizeObserver(measure).observe($("network"));
}

drawLuck();
build();
listen();
measure();
