// What the page shows, and its place in the address: the link reproduces the view.

const NUMBERS = ["temperature", "top_p", "max_tokens", "seed", "plausibility", "threshold"];
const WORDS = ["mode", "prompt", "system", "gate", "primary"];

/** The view of somebody who opens the page for the first time. */
export function initial(pair) {
  const { strength, plausibility, gate, threshold, primary } = pair.defaults;
  const strengths = [...new Set([-1, 0, strength || 1])];
  return {
    mode: "completion",
    prompt: pair.examples[0] ?? "",
    system: "",
    strengths,
    selected: strengths.length - 1,
    temperature: 0,
    top_p: 1,
    max_tokens: 64,
    seed: null,
    plausibility,
    gate,
    threshold: threshold ?? null,
    primary: primary ?? "rlvr",
  };
}

/** The part of an address behind `#`; what is as at first is left out. */
export function encode(view, pair) {
  const first = initial(pair);
  const query = new URLSearchParams();
  query.set("prompt", view.prompt);
  query.set("strengths", view.strengths.join(","));
  query.set("selected", view.selected);
  for (const name of [...WORDS, ...NUMBERS]) {
    const value = view[name];
    if (name !== "prompt" && value !== first[name]) query.set(name, value ?? "");
  }
  return query.toString();
}

/** The inverse of `encode`; null for an address that asks for nothing. */
export function decode(hash, pair) {
  const query = new URLSearchParams(hash.replace(/^#/, ""));
  if (!query.has("prompt")) return null;
  const view = initial(pair);
  for (const name of WORDS) if (query.has(name)) view[name] = query.get(name);
  for (const name of NUMBERS) {
    if (query.has(name)) view[name] = query.get(name) === "" ? null : Number(query.get(name));
  }
  const strengths = (query.get("strengths") ?? "").split(",").map(Number);
  if (strengths.every(Number.isFinite)) view.strengths = strengths;
  const selected = Number(query.get("selected"));
  view.selected = selected in view.strengths ? selected : 0;
  return view;
}

/** The settings of one column, as the field `extrapolation`. */
export function extrapolation(view, strength) {
  const settings = { strength, plausibility: view.plausibility ?? 0, gate: view.gate };
  if (view.gate !== "none") settings.primary = view.primary;
  if (view.threshold !== null && needsThreshold(view.gate)) settings.threshold = view.threshold;
  return settings;
}

/** The request of one column: its path, and its body as any client would send it. */
export function request(view, strength, model) {
  const chat = view.mode === "chat";
  const user = [{ role: "user", content: view.prompt }];
  const system = view.system ? [{ role: "system", content: view.system }] : [];
  const body = {
    model,
    ...(chat ? { messages: [...system, ...user] } : { prompt: view.prompt }),
    temperature: view.temperature ?? 1,
    top_p: view.top_p ?? 1,
    max_tokens: view.max_tokens ?? 64,
    ...(view.seed === null ? {} : { seed: view.seed }),
    extrapolation: extrapolation(view, strength),
  };
  return { path: chat ? "v1/chat/completions" : "v1/completions", body };
}

export function needsThreshold(gate) {
  return gate !== "none" && gate !== "all";
}
