// The selected column as a request that anybody can send.

import { request } from "./state.js";

export function asCurl(view, strength, model, base) {
  const { path, body } = request(view, strength, model);
  const data = JSON.stringify(body, null, 2).replaceAll("'", "'\\''");
  return `curl ${new URL(path, base)} \\\n  -H 'content-type: application/json' \\\n  -d '${data}'\n`;
}

export function asPython(view, strength, model, base) {
  const { body } = request(view, strength, model);
  const { extrapolation, ...settings } = body;
  const create = "messages" in body ? "client.chat.completions.create" : "client.completions.create";
  const text = "messages" in body ? "answer.choices[0].message.content" : "answer.choices[0].text";
  const lines = Object.entries(settings).map(([name, value]) => `    ${name}=${literal(value)},`);
  return `from openai import OpenAI

client = OpenAI(base_url=${literal(new URL("v1", base).href)}, api_key="none")
answer = ${create}(
${lines.join("\n")}
    extra_body={"extrapolation": ${literal(extrapolation)}},
)
print(${text})
`;
}

// JSON's numbers, strings, lists and objects are Python's; the page has no true, false or null.
function literal(value) {
  if (Array.isArray(value)) return `[${value.map(literal).join(", ")}]`;
  if (typeof value === "object") {
    const items = Object.entries(value).map(([name, each]) => `${literal(name)}: ${literal(each)}`);
    return `{${items.join(", ")}}`;
  }
  return JSON.stringify(value);
}
