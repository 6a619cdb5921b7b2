// What both models say of the token under the pointer or the focus.

import { plain, signed } from "./tokens.js";

const panel = document.getElementById("inspector");
let shown = null;

/** Show a token beside its element. */
export function show(element, token) {
  hide();
  shown = element;
  panel.replaceChildren(heading(token), values(token), ...alternatives(token), ...gate(token));
  panel.hidden = false;
  element.setAttribute("aria-describedby", panel.id);
  place(element);
}

export function hide() {
  shown?.removeAttribute("aria-describedby");
  shown = null;
  panel.hidden = true;
}

export function isShown() {
  return !panel.hidden;
}

function place(element) {
  const line = element.getClientRects()[0] ?? element.getBoundingClientRect();
  const room = document.documentElement.clientWidth - panel.offsetWidth - 12;
  const below = line.bottom + 8;
  const fits = below + panel.offsetHeight + 16 < document.documentElement.clientHeight;
  const top = fits ? below : line.top - panel.offsetHeight - 8;
  panel.style.left = `${Math.max(12, Math.min(line.left, room)) + scrollX}px`;
  panel.style.top = `${Math.max(8, top) + scrollY}px`;
  panel.classList.toggle("above", !fits); // where the panel is a sheet at the edge of a phone
}

function heading(token) {
  const what = make("div", "what");
  what.append(make("code", "", quoted(token.text)), make("span", "delta", `Δ ${signed(token.delta)}`));
  return what;
}

function values(token) {
  const rows = [
    ["log p of the token", token.rlvr_logprob, token.base_logprob],
    ["probability", percent(token.rlvr_logprob), percent(token.base_logprob)],
    ["entropy here", token.rlvr_entropy, token.base_entropy],
  ];
  const table = columns("", ["rlvr", "base"], rows);
  const kl = row("KL(rlvr ‖ base) here", [plain(token.kl, 3)]);
  kl.lastChild.colSpan = 2;
  table.tBodies[0].append(kl);
  return table;
}

function alternatives(token) {
  if (!token.top?.length) return [];
  const best = token.top.slice(0, 6);
  const rows = best.map((each) => [
    quoted(each.text), percent(each.rlvr_logprob), percent(each.base_logprob), signed(each.delta),
  ]);
  const table = columns("likeliest", ["rlvr", "base", "Δ"], rows);
  table.className = "alternatives";
  best.forEach((each, i) => {
    table.tBodies[0].rows[i].classList.toggle("chosen", each.token_id === token.token_id);
  });
  return [table];
}

function gate(token) {
  if (token.rate === undefined || token.rate === null) return [];
  const acts = { true: "The gate throws this token away", false: "The gate keeps this token" };
  const said = acts[token.acts] ?? "The gate acts by chance";
  return [make("p", "", `${said}; it acts on ${(100 * token.rate).toFixed(1)} % of the draws here.`)];
}

function columns(title, names, rows) {
  const table = make("table");
  const head = table.createTHead().insertRow();
  for (const name of [title, ...names]) head.append(make("th", "", name));
  const body = table.createTBody();
  for (const [name, ...cells] of rows) body.append(row(name, cells));
  return table;
}

function row(name, cells) {
  const made = make("tr");
  made.append(make("th", "", name));
  for (const cell of cells) {
    made.append(make("td", "", typeof cell === "number" ? plain(cell, 3) : (cell ?? "–")));
  }
  return made;
}

function percent(logprob) {
  if (logprob === null || logprob === undefined) return "–";
  const share = 100 * Math.exp(logprob);
  if (share > 0 && share < 0.01) return "< 0.01 %";
  return `${share.toFixed(share < 10 ? 2 : 1)} %`;
}

function quoted(text) {
  return text === "" ? "(part of a character)" : JSON.stringify(text).slice(1, -1).replaceAll(" ", "␣");
}

function make(name, className = "", text = "") {
  const element = document.createElement(name);
  if (className) element.className = className;
  if (text) element.textContent = text;
  return element;
}
