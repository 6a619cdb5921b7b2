// The axis of strengths: its ticks, and a chip for each column.

import { plain } from "./tokens.js";

const NAMES = { [-1]: "base", 0: "rlvr" };

/** A strength as a number. */
export function short(strength) {
  return plain(strength, 2).replace(/\.?0+$/, "");
}

/** A strength as its model, where it is one. */
export function name(strength) {
  return NAMES[strength] ?? short(strength);
}

export function meaning(strength) {
  if (strength in NAMES) return NAMES[strength];
  return strength < 0 ? "between base and rlvr" : "beyond rlvr";
}

/** Marks under the slider from `low` to `high`, and on it those of the other columns. */
export function ticks(view, low, high) {
  const step = high > 5 ? 2 : 1;
  const whole = Array.from({ length: Math.floor((high - low) / step) + 1 }, (_, i) => low + i * step);
  const others = view.strengths.filter((_, index) => index !== view.selected);
  const mark = (strength, text, className) => {
    const made = document.createElement("i");
    made.textContent = text;
    made.className = className;
    made.style.setProperty("--at", (strength - low) / (high - low));
    return made;
  };
  return [
    ...whole.map((strength) => mark(strength, name(strength), "")),
    ...others.map((strength) => mark(strength, "", "column")),
  ];
}

/** A chip for each column, to select it or to remove it. */
export function chips(view, select, remove) {
  return view.strengths.map((strength, index) => {
    const item = document.createElement("li");
    const selected = index === view.selected;
    item.classList.toggle("selected", selected);
    const choose = button(name(strength), () => select(index));
    choose.setAttribute("aria-pressed", selected);
    item.append(choose);
    if (view.strengths.length > 1) {
      const cross = button("×", () => remove(index));
      cross.className = "remove";
      cross.setAttribute("aria-label", `Remove the column at ${name(strength)}`);
      item.append(cross);
    }
    return item;
  });
}

function button(text, onClick) {
  const made = document.createElement("button");
  made.type = "button";
  made.textContent = text;
  made.addEventListener("click", onClick);
  return made;
}
