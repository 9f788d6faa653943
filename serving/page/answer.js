// An answer as elements: the verdict, how rare its class was in training, and the three opinions.

import { make, makeSvg } from "./dom.js";

const MAX_BARS = 90;
const WIDTH = 220;
const HEIGHT = 52;
const GROUPS = { head: "head class: frequent", mid: "mid class", tail: "tail class: rare" };
const oneDigit = { minimumFractionDigits: 1, maximumFractionDigits: 1 };
const tenths = new Intl.NumberFormat("en", { style: "percent", ...oneDigit });
const percents = new Intl.NumberFormat("en", { style: "percent" });
const whole = new Intl.NumberFormat("en");

/** A probability in [0, 1] for people. */
export function percent(probability) {
  return probability > 0 && probability < 0.001 ? "< 0.1%" : tenths.format(probability);
}

/** How much CLS and DIST count for at a blend. */
export function weights(blend) {
  return { cls: percents.format(blend), dist: percents.format(1 - blend) };
}

export function count(number) {
  return whole.format(number);
}

/** The best class, how sure the model is, how rare the class was, and whether the experts agree. */
export function verdict(result, model) {
  return [
    make(
      "div",
      { class: "verdict" },
      make("h3", {}, result.label),
      make("span", { class: "sure" }, percent(result.probability)),
    ),
    rarity(result, model),
    ...(result.experts ? [agreement(result.experts)] : []),
  ];
}

/** The answer's and both experts' best classes, side by side; of a model without them its own. */
export function opinions(result, blend) {
  if (!result.experts) {
    const own = opinion("both", "Best classes", "both experts alike", result.top_k);
    return make("div", { class: "opinions" }, own);
  }
  const { cls, dist } = weights(blend);
  return make(
    "div",
    { class: "opinions" },
    opinion("both", "Together", `${cls} CLS, ${dist} DIST`, result.top_k),
    opinion("cls", "CLS alone", "head expert: frequent classes", result.experts.cls),
    opinion("dist", "DIST alone", "tail expert: rare classes", result.experts.dist),
  );
}

function opinion(kind, title, subtitle, scores) {
  return make(
    "section",
    { class: kind, "aria-label": title },
    make("h4", {}, title, make("small", {}, subtitle)),
    make("ol", {}, ...scores.map(score)),
  );
}

function score({ label, probability }) {
  const bar = make("div", { class: "fill" });
  bar.style.width = `${100 * probability}%`;
  return make(
    "li",
    { class: "score" },
    make("span", {}, label),
    make("span", { class: "share" }, percent(probability)),
    make("div", { class: "track", "aria-hidden": "true" }, bar),
  );
}

function agreement({ cls, dist, agree }) {
  if (agree) return make("p", { class: "agreement yes" }, "✓ Both experts agree");
  const words = `≠ The experts disagree: CLS says ${cls[0].label}, DIST says ${dist[0].label}`;
  return make("p", { class: "agreement no" }, words);
}

function rarity({ index, group }, model) {
  const chip = make("span", { class: `chip ${group}` }, GROUPS[group] ?? group);
  const counts = model?.train_counts;
  if (!counts) return make("div", { class: "rarity" }, chip);
  const [least, most] = counts.reduce(
    ([low, high], each) => [Math.min(low, each), Math.max(high, each)],
    [Infinity, 0],
  );
  const noun = counts[index] === 1 ? "image" : "images";
  const words = make(
    "p",
    {},
    "Training saw ",
    make("strong", {}, `${count(counts[index])} ${noun}`),
    ` of it; the classes have ${count(least)} to ${count(most)} each.`,
  );
  return make("div", { class: "rarity" }, chip, words, longTail(counts, index, group, most));
}

/** The number of training images of all classes, most first, with this one marked. */
function longTail(counts, index, group, most) {
  const order = counts.map((_, i) => i).sort((a, b) => counts[b] - counts[a] || a - b);
  const num = Math.min(order.length, MAX_BARS);
  const place = order.indexOf(index);
  const marked = Math.floor((place * num) / order.length);
  const step = WIDTH / num;
  const bars = Array.from({ length: num }, (_, bar) => {
    // Of many classes each bar shows one that stands for its neighbours.
    const position = bar === marked ? place : Math.floor((bar * order.length) / num);
    const height = Math.max(2, (HEIGHT * counts[order[position]]) / most);
    return makeSvg("rect", {
      x: bar * step,
      y: HEIGHT - height,
      width: Math.max(step - Math.min(3, step / 4), 0.5),
      height,
      rx: Math.min(1.5, step / 4),
      class: bar === marked ? `here ${group}` : null,
    });
  });
  return makeSvg(
    "svg",
    { class: "counts", viewBox: `0 0 ${WIDTH} ${HEIGHT}`, "aria-hidden": "true" },
    ...bars,
  );
}
