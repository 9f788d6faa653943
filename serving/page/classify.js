// The page that classifies: files come in, each becomes a card that asks for its own answer.

import { count, opinions, verdict, weights } from "./answer.js";
import { classify, explain, Failure, fetchModels, useKey } from "./api.js";
import { byId, make } from "./dom.js";
import { Looks } from "./explain.js";

const MAX_CARDS = 100;
const AT_ONCE = 4; // requests in flight; the service's queue is for everybody
const SLIDER_REST_MS = 200;
const SMALL_PX = 64;
const PROVIDERS = { CPU: "processor (CPU)", CUDA: "graphics card (CUDA)", Tensorrt: "TensorRT" };

const cards = [];
const waiting = [];
let inFlight = 0;
let models = [];
let keyTried = false;
let chosen; // one of several models, else the service's default
let firstLook; // at the models, which say what may be asked
let sliderTimer;

class Card {
  constructor(file) {
    this.file = file;
    this.state = "waiting";
    this.name = file.name || "Pasted picture";
    this.address = URL.createObjectURL(file);
    this.words = make("div", { class: "words" });
    this.body = make("div", {}, make("p", { class: "file" }, this.name), this.words);
    const remove = make(
      "button",
      {
        type: "button",
        class: "quiet remove",
        "aria-label": `Remove ${this.name}`,
        onclick: () => this.remove(),
      },
      "×",
    );
    this.element = make("li", { class: "card panel", tabindex: -1 }, this.preview(), this.body, remove);
    this.say("Waiting …");
  }

  preview() {
    const image = make("img", { alt: "", src: this.address, decoding: "async" });
    image.addEventListener("load", () => {
      image.classList.toggle("small", image.naturalWidth <= SMALL_PX);
    });
    image.addEventListener("error", () => image.replaceWith("no preview"));
    return make("div", { class: "preview" }, image);
  }

  /** Ask, or ask again with the slider as it stands now. */
  ask() {
    this.abort?.abort();
    this.abort = new AbortController();
    this.state = "waiting";
    this.element.setAttribute("aria-busy", "true");
    if (!waiting.includes(this)) waiting.push(this);
    askNext();
  }

  async run() {
    const { signal } = this.abort;
    const blend = chosenBlend();
    if (!this.answered) this.say("Asking …");
    const onWait = (seconds) => this.say(`The service is busy; asking again in ${seconds} s …`);
    let show;
    try {
      await firstLook;
      const ask = () => {
        const wanted = hasExperts() ? blend : undefined;
        return classify(this.file, { blend: wanted, model: chosen, signal, onWait });
      };
      const result = await ask().catch(async (error) => {
        if (!error.isGone) throw error;
        await showModel(); // and with it the choice
        return ask();
      });
      const model = await modelOf(result.model);
      show = () => this.showResult(result, model, blend);
    } catch (error) {
      if (!(error instanceof Failure) && error.name !== "AbortError") console.error(error);
      const unknown = new Failure("Something went wrong in this page", String(error));
      show = () => this.showFailure(error instanceof Failure ? error : unknown);
    }
    if (signal.aborted) return; // removed, or asked again meanwhile
    this.element.removeAttribute("aria-busy");
    show();
    showStatus();
  }

  say(text) {
    this.clear();
    this.words.replaceChildren(make("p", { class: "detail" }, text));
  }

  clear() {
    this.answered = this.locked = false;
    this.element.classList.remove("failed");
    for (const part of this.element.querySelectorAll(".opinions, .looks")) part.remove();
  }

  showResult(result, model, blend) {
    this.clear();
    this.state = "answered";
    this.answered = true;
    this.words.replaceChildren(...verdict(result, model));
    this.element.append(opinions(result, blend));
    if (model?.explain) this.element.append(this.looksOf(model).element);
  }

  /** Where a model's experts looked, which no slider changes; kept until another model answers. */
  looksOf(model) {
    if (this.looks?.model === model) return this.looks;
    this.looks?.close();
    const ask = (signal, onWait) => explain(this.file, { model, signal, onWait });
    const { name, address } = this;
    const cropPct = model.preprocess.crop_pct;
    const onGone = () => this.ask(); // the answer is of a model that is no longer there
    this.looks = new Looks({ name, address, cropPct, ask, onLocked: askForKey, onGone });
    this.looks.model = model;
    return this.looks;
  }

  showFailure(failure) {
    this.clear();
    this.state = "failed";
    this.locked = failure.status === 401;
    if (this.locked) askForKey();
    this.element.classList.add("failed");
    const trace = [failure.code, failure.requestId && `request ${failure.requestId}`];
    const onclick = () => {
      this.element.focus(); // the button goes away
      this.ask();
    };
    const again = make("button", { type: "button", onclick }, "Try again");
    this.words.replaceChildren(
      make("h3", { class: "trouble" }, failure.title),
      ...(failure.detail ? [make("p", { class: "detail" }, failure.detail)] : []),
      make("p", { class: "trace" }, make("code", {}, trace.filter(Boolean).join(" · "))),
      ...(failure.canRetry ? [again] : []),
    );
  }

  remove() {
    const place = cards.indexOf(this);
    if (place < 0) return;
    this.abort?.abort();
    this.looks?.close();
    URL.revokeObjectURL(this.address);
    cards.splice(place, 1);
    // The focus was on a button that goes away with the card.
    const next = cards[Math.min(place, cards.length - 1)];
    (next ? next.element.querySelector(".remove") : byId("files")).focus();
    this.element.remove();
    showStatus();
  }
}

function add(files) {
  const room = MAX_CARDS - cards.length;
  const taken = [...files].slice(0, Math.max(room, 0)).map((file) => new Card(file));
  if (taken.length === 0 && room > 0) return;
  cards.unshift(...taken);
  byId("answers").prepend(...taken.map((card) => card.element));
  for (const card of taken) card.ask();
  const left = files.length - taken.length;
  showStatus(left > 0 ? `${count(left)} left out: the page holds ${MAX_CARDS}.` : "");
}

function askNext() {
  while (inFlight < AT_ONCE && waiting.length > 0) {
    const card = waiting.shift();
    if (card.abort.signal.aborted) continue;
    inFlight++;
    card.run().finally(() => {
      inFlight--;
      askNext();
    });
  }
}

function showStatus(extra = "") {
  const numOf = (state) => cards.filter((card) => card.state === state).length;
  const [numWaiting, numAnswered, numFailed] = ["waiting", "answered", "failed"].map(numOf);
  const parts = [
    numAnswered && `${numAnswered} answered`,
    numFailed && `${numFailed} failed`,
    numWaiting && `${numWaiting} to come`,
  ];
  byId("answers-head").hidden = cards.length === 0;
  byId("status").textContent = `${parts.filter(Boolean).join(", ")}${extra && `. ${extra}`}`;
}

function chosenBlend() {
  return Number(byId("blend").value);
}

function showBlend() {
  const blend = chosenBlend();
  const { cls, dist } = weights(blend);
  let words = `${dist} DIST, ${cls} CLS`;
  if (blend === 0.5) words = "both experts alike";
  if (blend === 1) words = "only CLS";
  if (blend === 0) words = "only DIST";
  byId("blend-words").textContent = words;
  byId("blend").setAttribute("aria-valuetext", words);
  byId("blend-reset").hidden = blend === 0.5;
}

function onBlend() {
  showBlend();
  clearTimeout(sliderTimer);
  sliderTimer = setTimeout(() => {
    for (const card of cards) card.ask();
    showStatus();
  }, SLIDER_REST_MS);
}

/** The served model with this name and version; the list is read again if it is not there. */
async function modelOf({ name, version }) {
  const find = () => models.find((each) => each.name === name && each.version === version);
  if (!find()) await showModel();
  return find();
}

async function showModel() {
  const facts = byId("model");
  try {
    models = await fetchModels();
  } catch (error) {
    const words = error instanceof Failure ? error.title : "The model is not known";
    facts.replaceChildren(make("div", { class: "trouble" }, words));
    if (error.status === 401) askForKey();
    return;
  }
  byId("access").hidden = true;
  showChoice();
  byId("who").hidden = !hasExperts();
  const model = asked();
  const provider = (model.provider ?? "").replace(/ExecutionProvider$/, "");
  const rows = {
    Model: `${model.name} ${model.version}`,
    Classes: count(model.classes.length),
    "Runs on": PROVIDERS[provider] ?? provider,
  };
  facts.replaceChildren(
    ...Object.entries(rows)
      .filter(([, value]) => value)
      .map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, value))),
  );
}

/** The model that pictures go to; nothing as long as none is known. */
function asked() {
  return chosen ?? models.find((each) => each.default) ?? models[0];
}

/** Whether that model says what each expert thinks: its average alone can be served, too. */
function hasExperts() {
  const model = asked();
  const outputs = model?.artefacts[model.variant ?? "float32"]?.outputs;
  return !outputs || outputs.includes("cls_logits");
}

/** Offer the served models, if there are several. */
function showChoice() {
  const namesakes = models.filter((each) => each.name === chosen?.name);
  // It may be gone, and another version have its place.
  chosen = namesakes.find((each) => each.version === chosen.version) ?? namesakes[0];
  const nameOf = (model) => `${model.name} ${model.version}`;
  byId("choice").replaceChildren(
    ...models.map((model, index) => make("option", { value: index }, nameOf(model))),
  );
  const shown = chosen ?? models.find((each) => each.default);
  byId("choice").value = String(Math.max(0, models.indexOf(shown)));
  byId("which").hidden = models.length < 2;
}

function askForKey() {
  byId("access").hidden = false;
  byId("access-words").textContent = keyTried ? "The service does not take this key." : "";
}

async function takeKey(event) {
  event.preventDefault();
  useKey(byId("key").value);
  keyTried = true;
  byId("key").value = "";
  await showModel();
  if (!byId("access").hidden) return;
  for (const card of cards) if (card.locked) card.ask();
}

function takeDrops() {
  let depth = 0; // enter and leave are told for every element on the way
  const mark = (change) => {
    depth = Math.max(0, depth + change);
    document.body.classList.toggle("dragging", depth > 0);
  };
  document.addEventListener("dragenter", () => mark(1));
  document.addEventListener("dragleave", () => mark(-1));
  document.addEventListener("dragover", (event) => event.preventDefault());
  document.addEventListener("drop", (event) => {
    event.preventDefault(); // else the browser leaves the page to show the file
    mark(-Infinity);
    add(event.dataTransfer.files);
  });
  document.addEventListener("paste", (event) => add(event.clipboardData.files));
}

for (const id of ["files", "camera"]) {
  byId(id).addEventListener("change", (event) => {
    add(event.target.files);
    event.target.value = ""; // so that the same file can be chosen again
  });
}
byId("blend").addEventListener("input", onBlend);
byId("blend-reset").addEventListener("click", () => {
  byId("blend").value = "0.5";
  onBlend();
  byId("blend").focus();
});
byId("choice").addEventListener("change", async (event) => {
  chosen = models[Number(event.target.value)];
  for (const card of cards) card.ask();
  showStatus();
  await showModel();
});
byId("access").addEventListener("submit", takeKey);
byId("clear").addEventListener("click", () => {
  for (const card of [...cards]) card.remove();
});
takeDrops();
showBlend();
firstLook = showModel();
