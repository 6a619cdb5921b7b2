// The playground: controls ↔ the view ↔ the address, and a column for each strength.

import { Refusal, getPair, useKey } from "./api.js";
import { Column } from "./column.js";
import * as inspector from "./inspector.js";
import { asCurl, asPython } from "./snippets.js";
import { decode, encode, initial, needsThreshold } from "./state.js";
import { chips, meaning, short, ticks } from "./strengths.js";
import { legend, plain } from "./tokens.js";

const MOST_COLUMNS = 6;
const SETTLE = 250; // ms without a move before a moved strength is asked for

const $ = (id) => document.getElementById(id);
const numbers = ["temperature", "top_p", "max_tokens", "seed", "plausibility", "threshold"];
const words = ["prompt", "system", "gate", "primary"];

let pair;
let view;
let columns = [];
let asked = false; // whether answers are on the page, so that moving the slider asks again
let settling;

async function start() {
  legend($("scale"));
  listen();
  if (/Mac|iP/.test(navigator.platform)) $("run-key").textContent = "⌘ ↵";
  await open();
}

/** Learn what is served, and show the view that the address asks for. */
async function open() {
  try {
    pair = await getPair();
  } catch (error) {
    say(error);
    return;
  }
  say("");
  describe();
  follow();
}

/** Show the view of the address; one that asks for something is answered at once. */
function follow() {
  const wanted = decode(location.hash, pair);
  view = permitted(wanted ?? initial(pair));
  fill();
  if (wanted) run();
}

/** A view within what this server can do; an address may come from another. */
function permitted(wanted) {
  const first = initial(pair);
  const [low, high] = pair.limits.strength;
  wanted.strengths = wanted.strengths.slice(0, MOST_COLUMNS);
  wanted.strengths = wanted.strengths.map((s) => Math.min(high, Math.max(low, s)));
  wanted.selected = Math.min(wanted.selected, wanted.strengths.length - 1);
  if (!pair.gates.includes(wanted.gate)) wanted.gate = "none";
  if (wanted.mode !== "chat" || !pair.chat) wanted.mode = "completion";
  for (const name of numbers) {
    if (wanted[name] !== null && !Number.isFinite(wanted[name])) wanted[name] = first[name];
  }
  return wanted;
}

/** What of the page depends on the pair alone. */
function describe() {
  $("subtitle").textContent =
    `${pair.name}: ${pair.rlvr.kind === "adapter" ? "a base and an adapter" : "two checkpoints"}. ` +
    "Strength −1 is the model before reinforcement learning, 0 the one after; beyond 0, decoding " +
    "goes further the same way.";
  document.title = `${pair.name} · rlvr-decode`;
  $("gate").replaceChildren(...pair.gates.map((gate) => new Option(gate)));
  document.querySelector("[value=chat]").disabled = !pair.chat;
  for (const [name, reason] of Object.entries(pair.refused)) {
    if ($(name)) Object.assign($(name), { disabled: true, title: reason, placeholder: "refused" });
  }
  $("examples").replaceChildren(...pair.examples.map(example));
}

function example(text) {
  const button = document.createElement("button");
  button.type = "button";
  button.className = "plain";
  button.textContent = text.trim().length > 48 ? `${text.trim().slice(0, 47)}…` : text.trim();
  button.addEventListener("click", () => {
    view.prompt = view.mode === "chat" ? text.trim() : text;
    fill();
    remember();
    $("prompt").focus();
  });
  return button;
}

// The view → the controls.

function fill() {
  for (const name of words) $(name).value = view[name];
  for (const name of numbers) $(name).value = view[name] ?? "";
  document.querySelector(`[name=mode][value=${view.mode}]`).checked = true;
  fillMode();
  fillGate();
  fillStrengths();
}

function fillMode() {
  $("system-field").hidden = view.mode !== "chat";
  $("prompt-label").textContent = view.mode === "chat" ? "Message" : "Prompt";
  summarise();
}

function fillGate() {
  $("threshold").disabled = !needsThreshold(view.gate);
  $("primary").disabled = view.gate === "none";
  const range = pair.limits.threshold?.[view.gate];
  $("threshold").placeholder = range ? `${plain(range[0], 0)} … ${plain(range[1], 1)}` : "";
  summarise();
}

function summarise() {
  const parts = [
    view.temperature === 0 ? "greedy" : `temperature ${view.temperature}`,
    view.top_p < 1 && `top-p ${view.top_p}`,
    `${view.max_tokens} tokens`,
    view.plausibility > 0 && `plausibility ${view.plausibility}`,
    view.gate === "none" ? "no gate" : `gate ${view.gate} ${view.threshold ?? ""}, first draw from ${view.primary}`,
    view.seed !== null && `seed ${view.seed}`,
  ];
  $("summary").textContent = parts.filter(Boolean).join(" · ");
}

function fillStrengths() {
  const strength = view.strengths[view.selected];
  const slider = $("strength");
  slider.max = Math.min(pair.limits.strength[1], Math.max(4, Math.ceil(Math.max(...view.strengths))));
  slider.value = strength;
  slider.setAttribute("aria-valuetext", `${strength}, ${meaning(strength)}`);
  $("strength-value").textContent = short(strength);
  $("strength-meaning").textContent = meaning(strength);
  $("ticks").replaceChildren(...ticks(view, pair.limits.strength[0], Number(slider.max)));
  $("chips").replaceChildren(...chips(view, select, removeColumn));
  $("add").hidden = view.strengths.length >= MOST_COLUMNS;
  fillColumns();
}

function fillColumns() {
  while (columns.length < view.strengths.length) columns.push(new Column(pointAt));
  for (const column of columns.splice(view.strengths.length)) column.stop();
  columns.forEach((column, index) => {
    column.name(view.strengths[index], meaning(view.strengths[index]));
    column.element.classList.toggle("selected", index === view.selected);
  });
  if (asked) $("answers").replaceChildren(...columns.map((column) => column.element));
}

// What somebody does → the view.

function listen() {
  $("ask").addEventListener("submit", (event) => {
    event.preventDefault();
    run();
  });
  $("stop").addEventListener("click", stop);
  $("strength").addEventListener("input", moved);
  $("add").addEventListener("click", addColumn);
  for (const name of words) $(name).addEventListener("input", () => set(name, $(name).value));
  for (const name of numbers) {
    $(name).addEventListener("input", () => {
      set(name, $(name).value === "" ? null : $(name).valueAsNumber);
    });
  }
  for (const radio of document.querySelectorAll("[name=mode]")) {
    radio.addEventListener("change", () => set("mode", radio.value));
  }
  for (const button of document.querySelectorAll("[data-copy]")) {
    button.addEventListener("click", () => copy(button));
  }
  $("key").addEventListener("change", () => {
    useKey($("key").value);
    open();
  });
  addEventListener("hashchange", follow);
  addEventListener("keydown", pressed);
}

function pressed(event) {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    $("ask").requestSubmit();
  } else if (event.key === "Escape") {
    if (inspector.isShown()) inspector.hide();
    else stop();
  }
}

function set(name, value) {
  view[name] = value;
  if (name === "mode") fillMode();
  else if (name === "gate") fillGate();
  else summarise();
  remember();
}

function moved() {
  view.strengths[view.selected] = Number($("strength").value);
  fillStrengths();
  remember();
  if (asked) again(view.selected);
}

function select(index) {
  view.selected = index;
  fillStrengths();
  remember();
  $("chips").children[index].firstChild.focus();
}

function addColumn() {
  const strength = Math.min(pair.limits.strength[1], Math.max(...view.strengths) + 0.5);
  view.strengths.push(strength);
  view.selected = view.strengths.length - 1;
  fillStrengths();
  remember();
  if (asked) again(view.selected);
}

function removeColumn(index) {
  view.strengths.splice(index, 1);
  const [gone] = columns.splice(index, 1);
  gone?.stop();
  if (view.selected >= index) view.selected = Math.max(0, view.selected - 1);
  fillStrengths();
  remember();
}

function remember() {
  history.replaceState(null, "", `#${encode(view, pair)}`);
}

// Asking.

async function run() {
  clearTimeout(settling);
  if (!pair) return open();
  if (!view.prompt) {
    $("prompt").focus();
    return say(new Error("Give the models something to continue."));
  }
  say("");
  asked = true;
  $("legend").hidden = false;
  remember();
  fillColumns();
  await answering(columns.map((column, i) => column.run(view, view.strengths[i], pair.models[0])));
}

function again(index) {
  clearTimeout(settling);
  settling = setTimeout(() => {
    answering([columns[index].run(view, view.strengths[index], pair.models[0])]);
  }, SETTLE);
}

let busy = 0;
async function answering(runs) {
  busy += 1;
  $("stop").disabled = false;
  await Promise.all(runs);
  busy -= 1;
  $("stop").disabled = busy === 0;
}

function stop() {
  clearTimeout(settling);
  for (const column of columns) column.stop();
}

function pointAt(element, token) {
  if (element && token) inspector.show(element, token);
  else inspector.hide();
}

function say(what) {
  const wrong = what instanceof Error;
  $("message").textContent = wrong ? what.message : what;
  $("message").classList.toggle("error", wrong);
  if (what instanceof Refusal && what.status === 401) {
    $("settings").open = true;
    $("key-field").hidden = false;
  }
}

async function copy(button) {
  const strength = view.strengths[view.selected];
  const base = new URL(".", location.href);
  const texts = {
    link: () => `${new URL(`#${encode(view, pair)}`, location.href)}`,
    curl: () => asCurl(view, strength, pair.models[0], base),
    python: () => asPython(view, strength, pair.models[0], base),
  };
  const text = texts[button.dataset.copy]();
  try {
    await navigator.clipboard.writeText(text);
    say("Copied.");
  } catch {
    // Browsers give the clipboard to secure origins only.
    prompt("Copy this:", text);
  }
}

start();
