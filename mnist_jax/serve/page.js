"use strict";
// The program of page.html: a trained network and what it does with a drawing.
//
//   the network   arrays in, arrays out: forward, contributions, gradients, connections
//   the image     from strokes on the pad to the image that the network gets
//   the state     the drawing, the units that are off, the selected unit
//   the view      cells, connections, bars, and the details of a unit
//   the input     mouse, pen, finger and keyboard

const $ = (id) => document.getElementById(id);
const data = JSON.parse($("data").textContent);
const [rows, columns] = data.image_shape;
const classNames = data.class_names;

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
const activate = ACTIVATIONS[data.activation];
const derivative = (z) => (activate(z + 1e-4) - activate(z - 1e-4)) / 2e-4;

const decodeBase64 = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));

/** The array that page.py stored as 24-bit integers, which are multiples of `scale`. */
function dequantize({ scale, base64 }) {
  const bytes = decodeBase64(base64);
  const values = new Float32Array(bytes.length / 3);
  for (let i = 0, at = 0; i < values.length; i++, at += 3) {
    const number = (bytes[at] << 24) | (bytes[at + 1] << 16) | (bytes[at + 2] << 8);
    values[i] = (number >> 8) * scale; // the shift keeps the sign
  }
  return values;
}

const layers = data.layers.map(({ units, kernel, bias }) => {
  // The weight from an input to a unit is kernel[input * units + unit].
  return { units, kernel: dequantize(kernel), bias: dequantize(bias) };
});
const hidden = layers.slice(0, -1);

/** Adds `inputs @ kernel` to `sums`; inputs of zero are skipped. */
function addProduct({ kernel, units }, inputs, sums) {
  inputs.forEach((input, i) => {
    if (input === 0) return;
    for (let unit = 0, at = i * units; unit < units; unit++, at++) sums[unit] += input * kernel[at];
  });
  return sums;
}

/**
 * The forward pass for pixels in [0, 1]; `masks` has a factor for each hidden unit.
 *
 * Layer l turns `activations[l]` into `sums[l]`, which are the logits or become
 * `activations[l + 1]`.
 */
function forward(pixels, masks) {
  const [activations, sums] = [[pixels], []];
  layers.forEach((layer, l) => {
    sums.push(addProduct(layer, activations[l], Float64Array.from(layer.bias)));
    if (layer === layers.at(-1)) return;
    activations.push(sums[l].map((z, unit) => masks[l][unit] && masks[l][unit] * activate(z)));
  });
  return { activations, sums, masks, logits: sums.at(-1) };
}

function softmax(logits) {
  const max = Math.max(...logits);
  const exponentials = logits.map((logit) => Math.exp(logit - max));
  const total = exponentials.reduce((a, b) => a + b);
  return exponentials.map((exponential) => exponential / total);
}

/** `changes` times the derivatives of the activations of hidden layer `l`, in either direction. */
const timesDerivatives = ({ sums, masks }, l, changes) =>
  changes.map((change, unit) => change * masks[l][unit] * derivative(sums[l][unit]));

/** What a hidden unit adds to each logit: exact in the last hidden layer, else to first order. */
function contributions(pass, l, unit) {
  const only = new Float64Array(hidden[l].units);
  only[unit] = pass.activations[l + 1][unit];
  let changes = addProduct(layers[l + 1], only, new Float64Array(layers[l + 1].units));
  for (let next = l + 1; next < hidden.length; next++) {
    const inputs = timesDerivatives(pass, next, changes);
    changes = addProduct(layers[next + 1], inputs, new Float64Array(layers[next + 1].units));
  }
  return changes;
}

/** The gradient of a unit's sum with respect to the pixels: in the first layer, its weights. */
function inputGradient(pass, l, unit) {
  let gradient = new Float64Array(layers[l].units);
  gradient[unit] = 1;
  for (; ; l--) {
    const { kernel, units } = layers[l];
    const inputs = new Float64Array(pass.activations[l].length);
    gradient.forEach((value, k) => {
      if (value) for (let i = 0; i < inputs.length; i++) inputs[i] += value * kernel[i * units + k];
    });
    if (l === 0) return inputs;
    gradient = timesDerivatives(pass, l - 1, inputs);
  }
}

/**
 * The `limit` connections [product, input, unit] of layer `l` with the largest products of
 * activation and weight, largest first: those of one input, those of one unit, or those of all
 * units that are not at zero.
 */
function strongestConnections({ activations, sums }, l, limit, { input, unit } = {}) {
  const connections = [];
  let weakest = 0;
  const { kernel, units } = layers[l];
  activations[l].forEach((value, i) => {
    if (value === 0 || (input ?? i) !== i) return;
    for (let k = unit ?? 0; k < (unit === undefined ? units : unit + 1); k++) {
      const product = value * kernel[i * units + k];
      if (Math.abs(product) <= weakest) continue;
      if (unit === undefined && (activations[l + 1] ?? sums[l])[k] === 0) continue;
      const rank = connections.findIndex(([other]) => Math.abs(other) < Math.abs(product));
      connections.splice(rank < 0 ? connections.length : rank, 0, [product, i, k]);
      if (connections.length > limit) connections.pop();
      if (connections.length === limit) weakest = Math.abs(connections.at(-1)[0]);
    }
  });
  return connections;
}

// ---- The image: what digit.py makes of the digit in a photo

const roundToEven = (x) => (Math.abs(x % 1) === 0.5 ? 2 * Math.round(x / 2) : Math.round(x));

/**
 * Strokes on a page of this `width` become an image like those that the network was trained on:
 * cropped, scaled to fit 20 of 28 pixels, and centred by mass. A blank page becomes null.
 */
function toImage(strokes, width) {
  let max = 0;
  for (const level of strokes) if (level > max) max = level;
  if (max < 32) return null;
  let [left, right, top, bottom] = [width, 0, strokes.length / width, 0];
  for (let at = 0; at < strokes.length; at++) {
    if (strokes[at] <= 0.3 * max) continue;
    const x = at % width;
    const y = (at - x) / width;
    if (x < left) left = x;
    if (x >= right) right = x + 1;
    if (y < top) top = y;
    bottom = y + 1;
  }
  const [boxWidth, boxHeight] = [right - left, bottom - top];
  const box = new Float64Array(boxWidth * boxHeight);
  for (let y = 0; y < boxHeight; y++) {
    const from = (top + y) * width + left;
    box.set(strokes.subarray(from, from + boxWidth), y * boxWidth);
  }

  const margin = Math.min(rows, columns) >= 28 ? 8 : 0;
  const ratio = Math.min((rows - margin) / boxHeight, (columns - margin) / boxWidth);
  const [digitWidth, digitHeight] = [boxWidth, boxHeight].map((side) =>
    Math.max(1, roundToEven(side * ratio)),
  );
  const narrow = resizeAndTranspose(box, boxWidth, digitWidth);
  const digit = resizeAndTranspose(narrow, boxHeight, digitHeight);

  const [rowSums, columnSums] = [new Float64Array(digitHeight), new Float64Array(digitWidth)];
  digit.forEach((value, at) => {
    rowSums[Math.trunc(at / digitWidth)] += value;
    columnSums[at % digitWidth] += value;
  });
  const corner = centringOffset(rowSums, rows) * columns + centringOffset(columnSums, columns);
  const brightest = Math.max(...digit);
  const image = new Uint8Array(rows * columns);
  digit.forEach((value, at) => {
    const position = corner + Math.trunc(at / digitWidth) * columns + (at % digitWidth);
    image[position] = roundToEven(255 * (value / brightest));
  });
  return image;
}

/** Resizes rows of `from` pixels to `to` pixels with a triangular filter, then transposes. */
function resizeAndTranspose(image, from, to) {
  const lines = image.length / from;
  const resized = new Float64Array(to * lines);
  const step = from / to;
  const radius = Math.max(step, 1);
  for (let i = 0; i < to; i++) {
    const centre = (i + 0.5) * step;
    const first = Math.max(0, Math.trunc(centre - radius + 0.5));
    const last = Math.min(from, Math.trunc(centre + radius + 0.5));
    let total = 0;
    for (let x = first; x < last; x++) {
      const weight = Math.max(0, 1 - Math.abs(x + 0.5 - centre) / radius);
      total += weight;
      for (let y = 0; y < lines; y++) resized[i * lines + y] += weight * image[y * from + x];
    }
    for (let y = 0; y < lines; y++) resized[i * lines + y] /= total;
  }
  return resized;
}

/** Where `profile` starts if its centre of mass is in the middle of `side` pixels. */
function centringOffset(profile, side) {
  const total = profile.reduce((a, b) => a + b);
  const centre = profile.reduce((a, b, i) => a + b * i, 0) / total;
  const offset = roundToEven(Math.floor(side / 2) - centre);
  return Math.min(Math.max(offset, 0), side - profile.length);
}

// ---- The state

const samples = data.samples.map((sample) => {
  return { ...sample, pixels: decodeBase64(sample.pixels) };
});
const blankImage = new Uint8Array(rows * columns);
const state = {
  sample: null, // the test image that is shown in place of the drawing
  image: null, // the grey values that the network gets; null for a blank page
  rate: 0, // the dropout rate: the share of hidden units that are off at random
  randoms: [], // a number in [0, 1) for each hidden unit, which is off if it is below the rate
  switchedOff: hidden.map(() => new Set()), // the units that were switched off by hand
  selected: null, // the unit {l, unit} whose details are shown; after the hidden layers, an answer
  pointing: false, // whether the mouse or the keyboard is on the selected unit
  pass: null, // what `forward` returned for the image
  classes: [], // the classes that have a bar: all, or the ten likeliest
};

let frameRequested = false;

/** Changes the state, and updates the page in the next frame, once for all changes until then. */
function set(changes = {}) {
  Object.assign(state, changes);
  if (!frameRequested) requestAnimationFrame(() => update());
  frameRequested = true;
}

function drawRandoms() {
  set({ randoms: hidden.map(({ units }) => Float64Array.from({ length: units }, Math.random)) });
}

/** A factor for each hidden unit: 0 if it is off, else 1 / (1 - rate) as in dropout. */
function dropoutMasks() {
  const factor = 1 / (1 - state.rate);
  return state.randoms.map((randoms, l) =>
    randoms.map((random, unit) =>
      random < state.rate || state.switchedOff[l].has(unit) ? 0 : factor,
    ),
  );
}

function update() {
  frameRequested = false;
  state.image = samples[state.sample]?.pixels ?? toImage(readPad(), pad.width);
  const pixels = Float64Array.from(state.image ?? blankImage, (grey) => grey / 255);
  state.pass = forward(pixels, dropoutMasks());
  const { logits } = state.pass;
  state.classes = [...classNames.keys()];
  if (classNames.length > 10) state.classes.sort((a, b) => logits[b] - logits[a]).length = 10;
  showAnswer();
  showNetwork();
  showUnit();
  showDropout();
}

// ---- The view

const pad = $("pad");
const padContext = pad.getContext("2d", { willReadFrequently: true });
const overlay = $("connections").getContext("2d");
const boxes = []; // the element with the cells of each hidden layer
let grids = []; // how many cells each box has in a row, and their size
let positions = []; // for the image and each layer: a function from a unit to its middle, in pixels
const formatCount = (number) => number.toLocaleString("en");
const formatDecimal = (x) => (Math.round(100 * x) / 100 + 0).toFixed(2).replace("-", "−");
const formatPercent = (share) => `${(Math.floor(1000 * share) / 10).toFixed(1)} %`;
const colour = (name) => getComputedStyle(document.body).getPropertyValue(`--${name}`);
const maxAbs = (values) => values.reduce((a, b) => Math.max(a, Math.abs(b)), 1e-9);

/** How strongly each pixel of the pad is drawn on, from 0 to 255. */
function readPad() {
  const rgba = padContext.getImageData(0, 0, pad.width, pad.height).data;
  const levels = new Uint8Array(rgba.length / 4);
  for (let i = 0; i < levels.length; i++) levels[i] = rgba[4 * i + 3];
  return levels;
}

/** Puts an image on a canvas; `rgba(value)` is [red, green, blue, alpha]. */
function paint(canvas, values, rgba = (grey) => [0, 0, 0, grey]) {
  [canvas.width, canvas.height] = [columns, rows];
  const picture = new ImageData(columns, rows);
  values.forEach((value, i) => picture.data.set(rgba(value), 4 * i));
  canvas.getContext("2d").putImageData(picture, 0, 0);
}

/** A new element with these properties and children. */
function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

/** Writes the texts that never change, and makes boxes, bars and samples. */
function build() {
  const noun = classNames.every((name) => /^\d$/.test(name)) ? "digit" : "picture";
  const activation = hidden.length ? `${data.activation}, ` : "";
  const sizes = [rows * columns, ...layers.map(({ units }) => units)].join("-");
  $("title").textContent = document.title = `Draw a ${noun} and see what the network makes of it`;
  $("intro").textContent =
    `This network of ${sizes} units (${activation}seed ${data.seed}) was trained on ` +
    `${formatCount(data.train_images)} images of ${data.dataset}. It misreads ` +
    `${formatCount(data.test_errors)} of ${formatCount(data.test_images)} that it has never seen.`;
  $("input-caption").textContent = `It sees ${rows} × ${columns}`;
  $("dropout").hidden = !hidden.length;

  const scale = 336 / Math.max(rows, columns);
  [pad.width, pad.height] = [columns, rows].map((side) => Math.round(scale * side));
  padContext.lineCap = padContext.lineJoin = "round";
  padContext.lineWidth = Math.max(30, scale);

  hidden.forEach(({ units }, l) => {
    const range = { ariaValueMin: 0, ariaValueMax: units - 1, ariaValueNow: 0 };
    const name = { className: "cells", role: "slider", ariaLabel: `Hidden layer ${l + 1}, unit` };
    boxes.push(make("div", { ...name, ...range, tabIndex: 0 }));
    const caption = make("figcaption", { textContent: `${formatCount(units)} units` });
    $("layers").append(make("figure", {}, caption, boxes[l]));
  });

  const longest = Math.max(...classNames.map((name) => name.length));
  document.body.classList.toggle("short", longest < 3);
  document.body.style.setProperty("--names", `${Math.max(1.2, 0.62 * longest)}em`);
  classNames.slice(0, 10).forEach(() => {
    const track = make("span", { className: "track" }, make("span", { className: "fill" }));
    const bar = make("button", {}, make("span"), track, make("span", { className: "percent" }));
    $("bars").append(make("li", {}, bar));
  });

  const misread = samples.length && samples.at(-1).prediction !== samples.at(-1).label;
  const note = misread ? "; it misreads the last ones" : "";
  $("samples-caption").textContent = `Or choose a test image${note}`;
  samples.forEach(({ label, prediction, pixels }) => {
    const error = prediction === label ? "" : `, read as ${classNames[prediction]}`;
    const title = `test image of ${classNames[label]}${error}`;
    const input = make("input", { type: "radio", name: "sample", ariaLabel: title });
    const canvas = make("canvas", { className: "picture" });
    paint(canvas, pixels);
    $("samples").append(make("label", { title }, input, canvas));
  });
}

/** Fits the cells into the page, and finds the position of each unit. */
function layOut() {
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
    const middle = (index) => (index + 0.5) * cell;
    return (unit) => [x + middle(unit % across), y + middle(Math.trunc(unit / across))];
  };
  const bars = [...$("bars").children].map((bar) => bar.getBoundingClientRect());
  const upright = tall && document.body.classList.contains("short");
  const atBar = (unit) => {
    const { left, top, width } = bars[state.classes.indexOf(unit)];
    return [left - main.left + (upright ? width / 2 : -4), top - main.top + (upright ? 0 : 13)];
  };
  const cells = boxes.map((box, l) => within(box, grids[l].across));
  positions = [within($("input-image"), columns), ...cells, atBar];
  set();
}

function showAnswer() {
  const { image, sample } = state;
  const probabilities = softmax(state.pass.logits);
  const best = probabilities.indexOf(Math.max(...probabilities));
  const truth = sample === null ? "" : `; the label is ${classNames[samples[sample].label]}`;
  paint($("input-image"), image ?? blankImage);
  $("name").textContent = image ? classNames[best] : "–";
  $("name").className = classNames[best].length > 2 ? "long" : "";
  $("confidence").textContent = image ? `${formatPercent(probabilities[best])} sure${truth}` : "";
  $("hint").textContent = truth ? "A test image.\nDraw to replace it." : image ? "" : "Draw here";
  document.querySelectorAll("#bars button").forEach((bar, row) => {
    const unit = state.classes[row];
    const [name, , percent] = bar.children;
    bar.classList.toggle("first", image !== null && unit === best);
    bar.style.setProperty("--share", image ? probabilities[unit] : 0);
    name.textContent = classNames[unit];
    percent.textContent = image ? formatPercent(probabilities[unit]) : "";
  });
  announce(image ? `${classNames[best]}, ${$("confidence").textContent}` : "");
}

let [announcement, timer] = ["", 0];

/** Lets screen readers read `text` when it has not changed for a moment. */
function announce(text) {
  if (text === announcement) return;
  announcement = text;
  clearTimeout(timer);
  timer = setTimeout(() => ($("announcement").textContent = text), 600);
}

/** Draws the cells of the hidden layers, the strongest connections, and a frame. */
function showNetwork() {
  overlay.setTransform(devicePixelRatio, 0, 0, devicePixelRatio, 0, 0);
  overlay.clearRect(0, 0, overlay.canvas.width, overlay.canvas.height);
  const names = ["ink", "cell", "positive", "negative"];
  const colours = Object.fromEntries(names.map((name) => [name, colour(name)]));
  grids.forEach((_, l) => drawCells(l, colours));
  layers.forEach((_, l) => drawConnections(l, colours));
  const { selected } = state;
  if (selected && selected.l < hidden.length) {
    const [x, y] = positions[selected.l + 1](selected.unit);
    const side = grids[selected.l].cell + 3;
    [overlay.strokeStyle, overlay.globalAlpha, overlay.lineWidth] = [colours.ink, 1, 2];
    overlay.strokeRect(x - side / 2, y - side / 2, side, side);
  }
}

function drawCells(l, colours) {
  const activations = state.pass.activations[l + 1];
  const max = maxAbs(activations);
  const square = (unit, side) => {
    const [x, y] = positions[l + 1](unit);
    overlay.fillRect(x - side / 2, y - side / 2, side, side);
  };
  const { cell } = grids[l];
  const side = cell > 5 ? cell - 1.5 : cell;
  [overlay.fillStyle, overlay.globalAlpha] = [colours.cell, 1];
  state.pass.masks[l].forEach((factor, unit) => square(unit, factor ? side : side / 3));
  activations.forEach((value, unit) => {
    if (!state.image || !value) return;
    overlay.fillStyle = value > 0 ? colours.ink : colours.negative;
    overlay.globalAlpha = Math.abs(value) / max;
    square(unit, side);
  });
}

/** The strongest connections of layer `l`; while a unit is pointed at, only those of that unit. */
function drawConnections(l, colours) {
  const { pass, image, selected, pointing, classes } = state;
  const only = {};
  if (pointing && selected.l === l) only.unit = selected.unit;
  else if (pointing && selected.l === l - 1) only.input = selected.unit;
  else if (pointing || !image) return;
  const connections = strongestConnections(pass, l, 48, only);
  for (const [product, input, unit] of [...connections].reverse()) {
    if (l === hidden.length && !classes.includes(unit)) continue;
    const strength = Math.abs(product / connections[0][0]);
    overlay.strokeStyle = product > 0 ? colours.positive : colours.negative;
    overlay.globalAlpha = 0.1 + 0.6 * strength;
    overlay.lineWidth = 0.5 + 1.5 * strength;
    drawCurve(positions[l](input), positions[l + 1](unit));
  }
}

function drawCurve([x, y], [u, v]) {
  const tall = document.body.classList.contains("tall");
  const controls = tall ? [x, (y + v) / 2, u, (y + v) / 2] : [(x + u) / 2, y, (x + u) / 2, v];
  overlay.beginPath();
  overlay.moveTo(x, y);
  overlay.bezierCurveTo(...controls, u, v);
  overlay.stroke();
}

/** Shows the selected unit: its value, what it looks for, and its votes. */
function showUnit() {
  const { selected, pass } = state;
  const isAnswer = selected?.l === hidden.length;
  $("weights").hidden = !selected;
  $("votes").hidden = $("switch").hidden = !selected || isAnswer;
  if (!selected) {
    $("unit-name").textContent = "Inside a unit";
    $("unit-text").textContent = hidden.length
      ? "Point at a unit or an answer to see what it looks for. Click a unit to switch it off."
      : "Point at an answer to see what it looks for.";
    return;
  }
  const { l, unit } = selected;
  const gradient = inputGradient(pass, l, unit);
  const max = maxAbs(gradient);
  const [positive, negative] = ["positive", "negative"].map((name) =>
    colour(name).match(/\w\w/g).map((part) => parseInt(part, 16)),
  );
  const rgba = (x) => [...(x > 0 ? positive : negative), (255 * Math.abs(x)) / max];
  paint($("weights"), gradient, rgba);
  const off = !isAnswer && !pass.masks[l][unit];
  const quantity = isAnswer ? "score" : "value";
  const value = (pass.activations[l + 1] ?? pass.logits)[unit];
  const status = off ? "off" : `${quantity} ${formatDecimal(value)}`;
  const name = isAnswer ? `Answer ${classNames[unit]}` : `Layer ${l + 1}, unit ${unit}`;
  $("unit-name").textContent = `${name}: ${status}`;
  $("weights").ariaLabel = `How each pixel changes its ${quantity}`;
  const source = l ? "For this drawing" : "Its weights";
  const exact = l === hidden.length - 1;
  const votes = exact ? "exactly what it adds to each score" : "what it adds, to first order";
  $("unit-text").textContent =
    `${source}: ink on red raises its ${quantity}, ink on blue lowers it.` +
    (isAnswer ? "" : ` The bars are its votes: ${votes}.`);
  if (isAnswer) return;
  $("switch").textContent = state.switchedOff[l].has(unit) ? "Switch it on" : "Switch it off";
  [boxes[l].ariaValueNow, boxes[l].ariaValueText] = [unit, `unit ${unit}, ${status}`];
  showVotes(contributions(pass, l, unit));
}

function showVotes(votes) {
  const max = maxAbs(votes);
  const lines = state.classes.map((unit) => {
    const bar = make("i");
    const [side, sign] = votes[unit] > 0 ? ["left", "positive"] : ["right", "negative"];
    const width = `${(50 * Math.abs(votes[unit])) / max}%`;
    Object.assign(bar.style, { [side]: "50%", width, background: `var(--${sign})` });
    const cell = make("td", {}, make("div", { className: "vote" }, bar));
    const name = make("th", { textContent: classNames[unit], scope: "row" });
    return make("tr", {}, name, cell, make("td", { textContent: formatDecimal(votes[unit]) }));
  });
  $("votes").replaceChildren(make("table", {}, ...lines));
}

function showDropout() {
  const factors = state.pass.masks.flatMap((mask) => [...mask]);
  const off = factors.filter((factor) => !factor).length;
  const total = formatCount(factors.length);
  $("count").textContent = `${formatCount(off)} of ${total} hidden units are off.`;
  $("rate-label").textContent = `Switch units off at random: ${Math.round(100 * state.rate)} %`;
  $("reset").disabled = !off && !state.rate;
  $("redraw").disabled = !state.rate;
}

// ---- The input

/** Clears the pad, and shows a test image, or none for null. */
function showSample(sample) {
  padContext.clearRect(0, 0, pad.width, pad.height);
  document.querySelectorAll("#samples input").forEach((input, i) => (input.checked = i === sample));
  set({ sample });
}

/** Draws a line from one point of the pad to another; the first line replaces a test image. */
function drawLine(from, to) {
  if (state.sample !== null) showSample(null);
  padContext.beginPath();
  padContext.moveTo(...from);
  padContext.lineTo(...to);
  padContext.stroke();
  set();
}

function listenToPointer() {
  let last = null; // where the pointer was last, while it draws
  const follow = (event) => {
    const { left, top, width, height } = pad.getBoundingClientRect();
    const [x, y] = [(event.clientX - left) / width, (event.clientY - top) / height];
    const point = [x * pad.width, y * pad.height];
    drawLine(last ?? point, point);
    last = point;
  };
  pad.onpointerdown = (event) => {
    if (!event.isPrimary || event.button) return;
    pad.setPointerCapture(event.pointerId);
    follow(event);
  };
  pad.onpointermove = (event) => {
    if (!last || !event.isPrimary) return;
    const events = event.getCoalescedEvents?.() ?? [];
    (events.length ? events : [event]).forEach(follow);
  };
  pad.onpointerup = pad.onpointercancel = (event) => event.isPrimary && (last = null);
}

function listenToPadKeys() {
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
      showSample(null);
      liftPen();
    } else if (!(event.key in moves)) return;
    event.preventDefault();
    pen.x = Math.min(Math.max(x + (right * pad.width) / 28, 0), pad.width);
    pen.y = Math.min(Math.max(y + (down * pad.height) / 28, 0), pad.height);
    if (pen.down) drawLine([x, y], [pen.x, pen.y]);
    showPen();
  };
  pad.onblur = liftPen;
  showPen();
}

/** Selects a unit of layer `l`; the answers are the layer after the hidden ones. */
const select = (l, unit) => set({ selected: { l, unit }, pointing: true });

const stopPointing = () => set({ pointing: false });

/** Switches a hidden unit off, or on again. */
function toggle({ l, unit }) {
  if (!state.switchedOff[l].delete(unit)) state.switchedOff[l].add(unit);
  set();
}

function listenToCells(box, l) {
  const last = hidden[l].units - 1;
  const selectedUnit = () => (state.selected?.l === l ? state.selected.unit : 0);
  const selectAt = (event) => {
    const { left, top } = box.getBoundingClientRect();
    const { across, cell } = grids[l];
    const column = Math.min(Math.trunc((event.clientX - left) / cell), across - 1);
    select(l, Math.min(Math.trunc((event.clientY - top) / cell) * across + column, last));
  };
  let mouse = true;
  box.onpointermove = selectAt;
  box.onpointerdown = (event) => {
    mouse = event.pointerType === "mouse";
    selectAt(event);
  };
  box.onclick = () => {
    if (mouse) toggle({ l, unit: selectedUnit() }); // a finger only selects, and has a button
  };
  box.onfocus = () => box.matches(":focus-visible") && select(l, selectedUnit());
  box.onpointerleave = box.onblur = stopPointing;
  box.onkeydown = (event) => {
    const { across } = grids[l];
    const arrows = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -across, ArrowDown: across };
    const move = { ...arrows, Home: -last, End: last }[event.key];
    if (move) select(l, Math.min(Math.max(selectedUnit() + move, 0), last));
    else if (event.key === "Enter" || event.key === " ") toggle({ l, unit: selectedUnit() });
    else return;
    event.preventDefault();
  };
}

function listen() {
  listenToPointer();
  listenToPadKeys();
  boxes.forEach(listenToCells);
  document.querySelectorAll("#bars button").forEach((bar, row) => {
    bar.onfocus = bar.onpointerenter = () => select(hidden.length, state.classes[row]);
    bar.onblur = bar.onpointerleave = stopPointing;
  });
  document.querySelectorAll("#samples input").forEach((input, i) => {
    input.onchange = () => showSample(i);
  });
  $("clear").onclick = () => showSample(null);
  $("switch").onclick = () => toggle(state.selected);
  $("redraw").onclick = drawRandoms;
  $("rate").oninput = () => set({ rate: Number($("rate").value) });
  $("reset").onclick = () => {
    $("rate").value = 0;
    set({ rate: 0, switchedOff: hidden.map(() => new Set()) });
  };
  matchMedia("(prefers-color-scheme: dark)").onchange = () => set();
  new ResizeObserver(layOut).observe($("network"));
}

drawRandoms();
build();
listen();
layOut();
