// One answer: it streams in, then each of its tokens is scored and tinted.

import { getDelta, stream } from "./api.js";
import { needsThreshold, request } from "./state.js";
import { short } from "./strengths.js";
import { signed, tokenElements } from "./tokens.js";

const ALTERNATIVES = 5;

export class Column {
  constructor(onFocus) {
    this.element = document.createElement("article");
    this.element.className = "answer";
    this.element.innerHTML =
      '<header><h2></h2><span class="quiet"></span></header>' +
      '<p class="text" tabindex="-1"></p><footer aria-live="polite"></footer>';
    [this.title, this.meaning] = this.element.querySelector("header").children;
    this.text = this.element.querySelector(".text");
    this.note = this.element.querySelector("footer");
    this.tokens = [];
    this.onFocus = onFocus;
    this.running = null;
    this.#listen();
  }

  name(strength, meaning) {
    this.title.textContent = short(strength);
    this.meaning.textContent = meaning;
    this.element.setAttribute("aria-label", `Strength ${this.title.textContent}, ${meaning}`);
  }

  /** Ask again; an answer that is still coming is given up. */
  async run(view, strength, model) {
    this.stop();
    const running = new AbortController();
    this.running = running;
    this.tokens = [];
    this.text.replaceChildren();
    this.#note("");
    this.element.classList.add("running");
    const ids = [];
    try {
      const { prompt, finish } = await this.#stream(request(view, strength, model), ids, running);
      this.element.classList.remove("running");
      await this.#score(view, model, prompt, ids, finish, running.signal);
    } catch (error) {
      if (running === this.running) this.#fail(error, running.signal.aborted, ids.length);
    } finally {
      if (running === this.running) {
        this.element.classList.remove("running");
        this.running = null;
      }
    }
  }

  stop() {
    this.running?.abort();
  }

  async #stream(asked, ids, running) {
    let prompt = [];
    let finish = null;
    for await (const piece of stream(asked, running.signal)) {
      prompt = piece.promptIds ?? prompt;
      finish = piece.finish ?? finish;
      ids.push(...piece.tokenIds);
      this.text.append(piece.text);
      this.#note(`${ids.length} tokens`);
    }
    return { prompt, finish };
  }

  async #score(view, model, prompt, ids, finish, signal) {
    const asked = { model, input: [...prompt, ...ids], top: ALTERNATIVES };
    if (view.gate !== "none") Object.assign(asked, { gate: view.gate, primary: view.primary });
    if (needsThreshold(view.gate)) asked.threshold = view.threshold;
    const streamed = this.text.textContent;
    this.tokens = (await getDelta(asked, signal)).slice(prompt.length);
    const last = this.tokens.length - 1;
    const ended = finish === "stop" && !streamed.endsWith(this.tokens[last]?.text ?? "");
    const elements = tokenElements(this.tokens, (index) => ended && index === last);
    this.text.replaceChildren(...elements);
    if (elements.length) elements[0].tabIndex = 0;
    this.#note(this.#summary(finish));
  }

  #summary(finish) {
    const deltas = this.tokens.map((token) => token.delta).filter((delta) => delta !== null);
    const parts = [`${this.tokens.length} tokens`];
    if (finish === "length") parts.push("cut at the limit");
    if (deltas.length) {
      const sum = deltas.reduce((total, delta) => total + delta, 0);
      parts.push(`Δ ${signed(sum)} in all`, `${signed(sum / deltas.length)} a token`);
    }
    const rates = this.tokens.map((token) => token.rate).filter((rate) => rate !== undefined);
    if (rates.length) {
      const mean = rates.reduce((total, rate) => total + rate, 0) / rates.length;
      parts.push(`gate acts on ${(100 * mean).toFixed(1)} %`);
    }
    return parts.join(" · ");
  }

  #fail(error, aborted, count) {
    if (aborted) this.#note(`stopped after ${count} tokens`);
    else this.#note(error.message, true);
  }

  #note(text, wrong = false) {
    this.note.textContent = text;
    this.note.classList.toggle("error", wrong);
  }

  /** Pointing at a token shows it; so do the arrow keys, once one has the focus. */
  #listen() {
    const shown = (event) => {
      const element = event.target.closest(".token");
      if (element) this.onFocus(element, this.tokens[element.dataset.index]);
      else this.onFocus(null);
    };
    this.text.addEventListener("pointerover", shown);
    this.text.addEventListener("focusin", shown);
    this.text.addEventListener("pointerleave", () => this.onFocus(null));
    this.text.addEventListener("focusout", () => this.onFocus(null));
    this.text.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      const next = step && this.text.children[Number(event.target.dataset.index) + step];
      if (!next) return;
      event.preventDefault();
      event.target.tabIndex = -1;
      next.tabIndex = 0;
      next.focus();
    });
  }
}
