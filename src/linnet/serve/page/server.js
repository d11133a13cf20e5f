// SPDX-License-Identifier: Apache-2.0
// Everything that goes to the server and comes back. The key lies in this tab's session storage and in no address.

const KEY = "linnet-key";

/** An answer that was no success. `status` 401: a key is wanted. */
export class Refusal extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

export const key = {
  get: () => sessionStorage.getItem(KEY),
  set: (value) => sessionStorage.setItem(KEY, value),
};

function headers(more = {}) {
  const found = key.get();
  return found ? { ...more, Authorization: `Bearer ${found}` } : more;
}

async function checked(response) {
  if (response.ok) return response;
  let message = `the server answered with status ${response.status}`;
  try {
    message = (await response.json()).error.message;
  } catch {
    // no body of ours, as a proxy's: the status says what there is to say
  }
  throw new Refusal(response.status, message);
}

/** JSON of a GET. Throws Refusal, or TypeError where nobody answers. */
export async function read(path) {
  return (await checked(await fetch(path, { headers: headers(), cache: "no-store" }))).json();
}

/**
 * The chunks of a streamed answer, as they come. Throws Refusal, also for an error in the middle of the stream;
 * AbortError once `signal` is aborted; TypeError when the connection is lost.
 */
export async function* stream(path, body, signal) {
  const request = { method: "POST", headers: headers({ "Content-Type": "application/json" }), signal };
  const response = await checked(await fetch(path, { ...request, body: JSON.stringify(body) }));
  for await (const { event, data } of events(response.body)) {
    if (event === "error") throw new Refusal(500, JSON.parse(data).error.message);
    if (data === "[DONE]") return;
    yield JSON.parse(data);
  }
  throw new Refusal(500, "the answer broke off: the server is gone, or something between it and this page");
}

/** Server-sent events of a body: comments are skipped, lines of data joined. */
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let buffer = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    buffer += value;
    const whole = buffer.split("\n\n");
    buffer = whole.pop();
    for (const one of whole) {
      const fields = { event: "message", data: [] };
      for (const line of one.split("\n")) {
        if (line.startsWith("data:")) fields.data.push(line.slice(5).trimStart());
        else if (line.startsWith("event:")) fields.event = line.slice(6).trim();
      }
      if (fields.data.length) yield { event: fields.event, data: fields.data.join("\n") };
    }
  }
}
