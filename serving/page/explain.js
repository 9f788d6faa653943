// Where both experts looked: the picture twice, an expert's map over each, and the same in words.

import { percent } from "./answer.js";
import { Failure } from "./api.js";
import { make } from "./dom.js";

const LONG_PX = 640; // of a drawing; the style makes it fit
const MAP_PX = 240; // more would not show: a map has few patches
const SMALL_PX = 64; // such pictures keep their pixels, as in the preview
const MAP_OPACITY = 0.7;
const OUTSIDE = "rgb(10 14 20 / 65%)";
const EVEN = 1 / 9;
const CLEAR = 1.15; // times the even share; less is no place to speak of
// From dark blue to yellow, ever lighter: told apart with any colour vision, and in grey.
const COLOURS = [[6, 24, 84], [58, 78, 122], [126, 126, 122], [192, 176, 102], [255, 234, 74]];
const PLACES = [
  ["upper left", "top", "upper right"],
  ["left", "centre", "right"],
  ["lower left", "bottom", "lower right"],
];
const EXPERTS = [
  ["cls", "cls_rollout", "CLS", "head expert: frequent classes"],
  ["dist", "distillation_rollout", "DIST", "tail expert: rare classes"],
];

/** A button, and under it what it asked for: both maps, or why there are none. */
export class Looks {
  /**
   * `address` is where the browser finds the picture, `cropPct` the share of its short side that
   * the model sees; `ask(signal, onWait)` gives the service's answer.
   */
  constructor({ name, address, cropPct, ask, onLocked, onGone }) {
    Object.assign(this, { address, cropPct, ask, onLocked, onGone });
    this.words = make("p", { class: "detail", role: "status" });
    this.panel = make("div", { class: "maps", hidden: true });
    this.button = make(
      "button",
      {
        type: "button",
        "aria-expanded": "false",
        "aria-label": `Where did they look? ${name}`,
        onclick: () => this.toggle(),
      },
      "Where did they look?",
    );
    this.element = make("div", { class: "looks" }, this.button, this.words, this.panel);
  }

  async toggle() {
    if (this.abort) return; // it is being asked
    if (this.panel.childElementCount === 0) await this.fetch();
    else this.show(this.panel.hidden);
  }

  async fetch() {
    const { signal } = (this.abort = new AbortController());
    this.words.textContent = "Asking …";
    const onWait = (seconds) => {
      this.words.textContent = `The service is busy; asking again in ${seconds} s …`;
    };
    try {
      const [{ rollouts }, image] = await Promise.all([
        this.ask(signal, onWait),
        loaded(this.address),
      ]);
      this.words.textContent = "";
      this.panel.replaceChildren(...drawings(rollouts, image, this.cropPct));
      this.show(true);
    } catch (error) {
      if (error.name === "AbortError") return;
      if (!(error instanceof Failure)) console.error(error);
      this.words.textContent = [error.title ?? "Something went wrong in this page", error.detail]
        .filter(Boolean)
        .join(". ");
      if (error.status === 401) this.onLocked();
      if (error.isGone) this.onGone();
    } finally {
      this.abort = null;
    }
  }

  show(open) {
    this.panel.hidden = !open;
    this.button.setAttribute("aria-expanded", String(open));
  }

  /** Give up what is being asked. */
  close() {
    this.abort?.abort();
  }
}

/** The square in the middle of a picture that the model sees, in the picture's pixels. */
export function seen(width, height, cropPct) {
  const side = cropPct * Math.min(width, height);
  return { x: (width - side) / 2, y: (height - side) / 2, side };
}

/** A map, rows from the top, as `size * size` numbers from 0 for its least to 1 for its most. */
export function smooth(rows, size) {
  const low = Math.min(...rows.flat());
  const range = Math.max(...rows.flat()) - low;
  const steps = Array.from({ length: size }, (_, pixel) => {
    // Between the middles of patches; beyond the outermost ones their own value.
    const place = ((pixel + 0.5) / size) * rows.length - 0.5;
    const inside = Math.min(Math.max(place, 0), rows.length - 1);
    const first = Math.min(Math.floor(inside), Math.max(rows.length - 2, 0));
    return { first, second: Math.min(first + 1, rows.length - 1), part: inside - first };
  });
  const between = (a, b, part) => a + (b - a) * part;
  return Float32Array.from({ length: size * size }, (_, index) => {
    const [y, x] = [steps[Math.floor(index / size)], steps[index % size]];
    const [above, below] = [rows[y.first], rows[y.second]].map((row) =>
      between(row[x.first], row[x.second], x.part),
    );
    return range > 0 ? (between(above, below, y.part) - low) / range : 0.5;
  });
}

/** The ninth of the square that holds most of a map, and what it holds of the whole. */
export function mostOf(rows) {
  const ninths = PLACES.map((names) => names.map(() => 0));
  const cell = 3 / rows.length;
  const overlap = (index, third) =>
    Math.max(0, Math.min((index + 1) * cell, third + 1) - Math.max(index * cell, third)) / cell;
  let total = 0;
  rows.forEach((row, y) =>
    row.forEach((share, x) => {
      total += share;
      for (let r = 0; r < 3; r++) {
        for (let c = 0; c < 3; c++) ninths[r][c] += share * overlap(y, r) * overlap(x, c);
      }
    }),
  );
  const shares = ninths.flat().map((share) => share / total);
  const most = Math.max(...shares);
  return { place: PLACES.flat()[shares.indexOf(most)], share: most };
}

/** How much of two maps is the same, in [0, 1]. */
export function overlapOf(first, second) {
  const [a, b] = [first, second].map((rows) => {
    const flat = rows.flat();
    const total = flat.reduce((sum, share) => sum + share, 0);
    return flat.map((share) => share / total);
  });
  return a.reduce((sum, share, index) => sum + Math.min(share, b[index]), 0);
}

/** Red, green and blue of a number in [0, 1]. */
export function colourOf(value) {
  const place = Math.min(Math.max(value, 0), 1) * (COLOURS.length - 1);
  const first = Math.min(Math.floor(place), COLOURS.length - 2);
  const part = place - first;
  return COLOURS[first].map((low, i) => Math.round(low + (COLOURS[first + 1][i] - low) * part));
}

/** The picture, decoded; null if the browser cannot show it, which the service may. */
async function loaded(address) {
  const image = new Image();
  image.src = address;
  try {
    await image.decode();
  } catch {
    return null;
  }
  return image;
}

function drawings(rollouts, image, cropPct) {
  const [cls, dist] = EXPERTS.map(([, key]) => rollouts[key]);
  const figures = EXPERTS.map(([kind, key, name, about]) => {
    const words = sentence(rollouts[key]);
    const canvas = make("canvas", { role: "img", "aria-label": `Where ${name} looked. ${words}` });
    draw(canvas, rollouts[key], image, cropPct);
    return make(
      "figure",
      { class: kind },
      make("h4", {}, `${name} looked here`, make("small", {}, about)),
      canvas,
      make("figcaption", {}, words),
    );
  });
  const whole = cropPct === 1 && (!image || image.naturalWidth === image.naturalHeight);
  const notes = [
    `The two maps overlap by ${percent(overlapOf(cls, dist))}.`,
    "A map tells how much of each part reached the expert, not what it made of it.",
    !whole && "The model sees the bright square alone.",
  ];
  return [...figures, legend(), make("p", { class: "detail" }, notes.filter(Boolean).join(" "))];
}

function sentence(rows) {
  const { place, share } = mostOf(rows);
  const even = `${percent(EVEN)} if it looked everywhere alike`;
  if (share < EVEN * CLEAR) return `Nearly everywhere alike; most, ${percent(share)}, ${at(place)}.`;
  return `Most ${at(place)}: this ninth of what it sees holds ${percent(share)} (${even}).`;
}

function at(place) {
  return ["left", "right"].includes(place) ? `on the ${place}` : `at the ${place}`;
}

function legend() {
  const stops = COLOURS.map((rgb) => `rgb(${rgb.join(" ")})`);
  const bar = make("span", { class: "ramp", "aria-hidden": "true" });
  bar.style.background = `linear-gradient(to right, ${stops.join(", ")})`;
  return make("p", { class: "legend" }, "its least", bar, "its most");
}

function draw(canvas, rows, image, cropPct) {
  const [width, height] = image ? [image.naturalWidth, image.naturalHeight] : [1, 1];
  const scale = LONG_PX / Math.max(width, height);
  canvas.width = Math.max(1, Math.round(width * scale));
  canvas.height = Math.max(1, Math.round(height * scale));
  const context = canvas.getContext("2d");
  const all = [0, 0, canvas.width, canvas.height];
  context.fillStyle = "#fff"; // behind what is transparent, as for the model
  context.fillRect(...all);
  if (image) {
    context.imageSmoothingEnabled = Math.max(width, height) > SMALL_PX;
    context.drawImage(image, ...all);
    // In grey, so that every colour is the map's.
    context.globalCompositeOperation = "saturation";
    context.fillStyle = "#808080";
    context.fillRect(...all);
    context.globalCompositeOperation = "source-over";
  }
  const { x, y, side } = seen(canvas.width, canvas.height, image ? cropPct : 1);
  context.imageSmoothingEnabled = true;
  context.globalAlpha = MAP_OPACITY;
  context.drawImage(painted(rows), x, y, side, side);
  context.globalAlpha = 1;
  context.fillStyle = OUTSIDE;
  context.beginPath();
  context.rect(...all);
  context.rect(x, y, side, side);
  context.fill("evenodd");
}

/** A map as a small picture of its own. */
function painted(rows) {
  const canvas = make("canvas", { width: MAP_PX, height: MAP_PX });
  const context = canvas.getContext("2d");
  const pixels = context.createImageData(MAP_PX, MAP_PX);
  smooth(rows, MAP_PX).forEach((value, index) => {
    pixels.data.set([...colourOf(value), 255], 4 * index);
  });
  context.putImageData(pixels, 0, 0);
  return canvas;
}
