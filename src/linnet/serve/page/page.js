// SPDX-License-Identifier: Apache-2.0
// The page: a conversation, its parameters, the key, and who listens to what.

import { Answer, Question } from "./answer.js";
import { Engine } from "./engine.js";
import { Refusal, key, read, stream } from "./server.js";
import { hints } from "./hint.js";

const field = (id) => document.getElementById(id);
const NUMBERS = ["temperature", "max_tokens", "top_p", "top_k", "min_p", "repetition_penalty", "seed"];
const ALTERNATIVES = 5;
const NARROW = "(max-width: 60rem)";

const conversation = field("conversation");
const message = field("message");
const turns = []; // {role, content}, without the system text
const open = []; // calls whose results are to be written
let talk = 0; // the number of the conversation; what an earlier one was waiting for is no part of this one
let running = null; // AbortController of the answer that comes

// --- the key

let asking = null;

/** Ask for a key, once however many want it; resolves when there is one. */
function wantKey(reason) {
  asking ??= new Promise((resolve) => {
    if (reason) field("key-reason").textContent = reason;
    const dialog = field("key-dialog");
    dialog.addEventListener("close", () => {
      asking = null;
      if (field("key").value) key.set(field("key").value.trim());
      field("key").value = "";
      field("key-button").hidden = !key.get();
      resolve();
      message.focus();
    }, { once: true });
    dialog.showModal();
  });
  return asking;
}

async function refused(error) {
  if (!(error instanceof Refusal) || error.status !== 401) return false;
  await wantKey(key.get() ? "The server does not accept this key. It may be another one:" : null);
  return true;
}

// --- what is sent

function body() {
  const system = field("system").value.trim();
  const request = {
    model: field("model").value,
    messages: system ? [{ role: "system", content: system }, ...turns] : turns,
    stream: true,
    stream_options: { include_usage: true },
  };
  const tools = field("tools").value.trim();
  if (tools) request.tools = json(tools, "the tools are no list as JSON");
  for (const name of NUMBERS) {
    const input = field(name);
    if (input.value !== "") request[name] = Number(input.value);
  }
  if (field("logprobs").checked) Object.assign(request, { logprobs: true, top_logprobs: ALTERNATIVES });
  return request;
}

function json(text, problem) {
  try {
    return JSON.parse(text);
  } catch {
    throw new Refusal(400, problem);
  }
}

/** A message, or the result of the first call that has none. */
async function send(text) {
  field("welcome")?.remove();
  const call = open.shift();
  turns.push(call ? { role: "tool", tool_call_id: call.id, content: text } : { role: "user", content: text });
  conversation.append(new Question(text, call ? resultOf(call) : undefined).node);
  const mine = talk;
  const unanswered = !open.length && !(await answered());
  if (mine !== talk) return;
  if (unanswered) {
    turns.pop(); // a message without an answer is taken back
    if (call) open.unshift(call);
    message.value ||= text;
  }
  want();
  toEnd();
}

/** Whether there was an answer. */
async function answered() {
  const answer = new Answer(field("model").value);
  const mine = talk;
  conversation.append(answer.node);
  toEnd();
  await fill(answer);
  if (mine !== talk || !answer.any) return false;
  turns.push(answer.turn());
  open.push(...answer.called);
  return true;
}

const resultOf = (call) => `Result of ${call.function.name}`;

/** Say what is to be written next. */
function want() {
  const wanted = open.length ? resultOf(open[0]) : "Message";
  field("wanted").textContent = wanted;
  message.placeholder = wanted;
}

async function fill(answer) {
  running = new AbortController();
  busy(true);
  let problem = null;
  try {
    for await (const chunk of stream("/v1/chat/completions", body(), running.signal)) answer.take(chunk);
  } catch (error) {
    if (error.name === "AbortError") answer.stopped = true;
    else {
      problem = error instanceof Refusal ? error.message : "the server does not answer";
      refused(error);
    }
  }
  running = null;
  answer.end(problem);
  busy(false);
  field("news").textContent = answer.stopped ? "The answer was stopped." : `The answer is complete: ${answer.measures()}`;
}

function busy(is) {
  field("send").hidden = is;
  field("stop").hidden = !is;
}

// --- listening

let following = true;

function toEnd() {
  following = true;
  conversation.scrollTop = conversation.scrollHeight;
}

conversation.addEventListener("grown", () => {
  if (following) conversation.scrollTop = conversation.scrollHeight;
});
conversation.addEventListener("thinking", () => (field("news").textContent = "The model is thinking."));
conversation.addEventListener("scroll", () => {
  following = conversation.scrollHeight - conversation.scrollTop - conversation.clientHeight < 40;
}, { passive: true });

field("form").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = message.value.trim();
  if (!text || running) return;
  message.value = "";
  send(text);
});

message.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  field("form").requestSubmit();
});

addEventListener("keydown", (event) => {
  if (event.key === "Escape" && running && !field("key-dialog").open) running.abort();
});

field("stop").addEventListener("click", () => {
  running?.abort();
  message.focus();
});

field("new").addEventListener("click", () => {
  running?.abort();
  talk += 1;
  turns.length = 0;
  open.length = 0;
  want();
  conversation.replaceChildren();
  field("news").textContent = "The conversation is forgotten.";
  message.focus();
});

field("key-button").addEventListener("click", () => wantKey("Another key for this server:"));

// --- the beginning

function known(state) {
  if (field("model").options.length) return;
  for (const name of state.models) field("model").add(new Option(name, name));
  field("model-choice").hidden = state.models.length < 2;
  field("model-name").textContent = `${state.models[0]}, context of ${state.max_model_len.toLocaleString("en")} tokens`;
  document.title = `${state.models[0]} · Linnet`;
  for (const name of NUMBERS) {
    if (name in state.sampling_defaults) field(name).placeholder = String(state.sampling_defaults[name]);
  }
  field("key-button").hidden = !key.get();
}

async function state() {
  const found = await read("/state");
  known(found);
  return found;
}

const narrow = matchMedia(NARROW);
if (narrow.matches) for (const part of [field("engine"), field("parameters")]) part.open = false;
hints(conversation);
busy(false);
new Engine(state, refused).run();
