// A token on the page: its tint says what RLVR did to it.

export const FULL_TINT = 4; // nats

/** How much of the colour a Δ gets, from 0 to 1: the root, for most Δ are small. */
export function weight(delta) {
  return Math.min(1, Math.sqrt(Math.abs(delta) / FULL_TINT));
}

/** Tint an element by a Δ; null, for a token without context, leaves it as paper. */
export function tint(element, delta) {
  element.classList.add("token");
  element.classList.toggle("down", delta < 0);
  element.style.setProperty("--weight", weight(delta ?? 0).toFixed(4));
}

/** The elements of scored tokens; `special` marks those that are not part of the text. */
export function tokenElements(tokens, special) {
  return tokens.map((token, index) => {
    const element = document.createElement("span");
    tint(element, token.delta);
    element.classList.toggle("acts", token.acts === true);
    element.dataset.index = index;
    element.dataset.delta = token.delta ?? "";
    element.tabIndex = -1;
    if (special(index)) element.append(glyph(token.text));
    else element.append(...visible(token.text));
    return element;
  });
}

/** Text in which a line break can be seen, and pointed at. */
function visible(text) {
  const lines = text.split("\n");
  const parts = lines.flatMap((line, i) => (i ? [glyph("↵"), "\n", line] : [line]));
  return parts.filter((part) => part !== "");
}

function glyph(text) {
  const element = document.createElement("span");
  element.className = "glyph";
  element.textContent = text;
  return element;
}

/** The legend: the tints of a few Δ. */
export function legend(scale) {
  const deltas = [-4, -2, -1, -0.5, -0.1, 0, 0.1, 0.5, 1, 2, 4];
  scale.replaceChildren(
    ...deltas.map((delta) => {
      const step = document.createElement("span");
      tint(step, delta);
      const label = document.createElement("b");
      label.textContent = signed(delta, Number.isInteger(delta) ? 0 : 1);
      step.append(label);
      return step;
    }),
  );
}

/** A number with a sign that is as wide as a plus. */
export function signed(value, digits = 2) {
  if (value === null || value === undefined) return "–";
  const text = Math.abs(value).toFixed(digits);
  if (Number(text) === 0) return text;
  return (value < 0 ? "−" : "+") + text;
}

/** The same without a plus. */
export function plain(value, digits = 2) {
  return signed(value, digits).replace("+", "");
}
