// The server's public API: what is served, answers as they come, and the tokens of a text.

/** An answer of the server other than 200, in its own words. */
export class Refusal extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

let key = "";

/** From now on, requests carry this API key; it is kept in no other place. */
export function useKey(given) {
  key = given;
}

async function send(path, body, signal) {
  const headers = { "content-type": "application/json" };
  if (key) headers.authorization = `Bearer ${key}`;
  const init = body === undefined ? { headers } : { method: "POST", headers, body: JSON.stringify(body) };
  const response = await fetch(path, { ...init, signal });
  if (!response.ok) throw await refusal(response);
  return response;
}

async function refusal(response) {
  const said = await response.text();
  let message = said;
  try {
    const answer = JSON.parse(said);
    message = answer.error?.message ?? answer.error ?? answer.detail ?? said;
  } catch {
    // Not JSON: a proxy's page, say.
  }
  return new Refusal(response.status, `${response.status}: ${String(message).slice(0, 600)}`);
}

export async function getPair() {
  return (await send("v1/pair")).json();
}

/** Every token of these, scored by both models. */
export async function getDelta(body, signal) {
  return (await (await send("v1/delta", body, signal)).json()).tokens;
}

/** The pieces of an answer: { text, tokenIds, promptIds, finish }, each as far as it has them. */
export async function* stream({ path, body }, signal) {
  const response = await send(path, { ...body, stream: true, return_token_ids: true }, signal);
  for await (const event of events(response.body)) {
    if (event.error) throw new Refusal(event.error.code, event.error.message);
    const choice = event.choices?.[0];
    yield {
      text: choice?.text ?? choice?.delta?.content ?? "",
      tokenIds: choice?.token_ids ?? [],
      promptIds: choice?.prompt_token_ids ?? event.prompt_token_ids ?? null,
      finish: choice?.finish_reason ?? null,
    };
  }
}

/** The JSON of every server-sent event, up to [DONE]. */
async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let waiting = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const lines = (waiting + value).split("\n");
    waiting = lines.pop();
    for (const line of lines) {
      if (!line.startsWith("data:")) continue;
      const data = line.slice(5).trim();
      if (data === "[DONE]") return;
      yield JSON.parse(data);
    }
  }
}
