// SPDX-License-Identifier: Apache-2.0
// One message on the page: its text as it grows, its thoughts, its tokens, what it took.

import { Calls } from "./calls.js";
import { Source } from "./source.js";
import { Thoughts } from "./thoughts.js";
import { Tokens } from "./tokens.js";
import { render } from "./markdown.js";

const DOUBTS = [0.3, 0.1, 0.02]; // a token below the first is marked, more so below the others

const part = (tag, name, text = "") => {
  const node = document.createElement(tag);
  node.className = name;
  node.textContent = text;
  return node;
};

export class Message {
  constructor(role, name) {
    this.node = part("article", `message ${role}`);
    this.node.setAttribute("aria-label", name);
    this.body = part("div", "body");
    this.node.append(part("h2", "who", name), this.body);
  }
}

/** What a person wrote: as it is. `name`: who, or what it is. */
export class Question extends Message {
  constructor(text, name = "You") {
    super("user", name);
    this.body.textContent = text;
  }
}

export class Answer extends Message {
  constructor(name) {
    super("assistant", name);
    this.source = new Source();
    this.thoughts = null;
    this.calls = new Calls();
    this.tokens = new Tokens();
    this.chunks = 0;
    this.began = performance.now();
    this.first = null;
    this.last = null;
    this.drawn = false;
    this.foot = part("p", "foot faint");
    this.node.append(this.calls.node, this.foot);
    this.node.setAttribute("aria-busy", "true");
    this.body.tabIndex = 0;
    this.node.answer = this;
  }

  get text() {
    return this.source.text("content");
  }

  get thought() {
    return this.source.text("reasoning_content");
  }

  /** Whether there is anything to send back. */
  get any() {
    return Boolean(this.text || this.thought || this.called.length);
  }

  /** Calls that are whole. */
  get called() {
    return this.reason === "tool_calls" ? this.calls.list : [];
  }

  /** A chunk of the stream. */
  take(chunk) {
    if (chunk.usage) this.usage = chunk.usage;
    const choice = chunk.choices[0];
    if (!choice) return;
    if (choice.logprobs?.content) this.tokens.add(choice.logprobs.content);
    if (choice.finish_reason) this.reason = choice.finish_reason;
    const { content, reasoning_content: thought, tool_calls: calls } = choice.delta;
    if (!content && !thought && !calls && !choice.logprobs) return;
    this.last = performance.now();
    this.first ??= this.last;
    this.chunks += 1;
    if (thought) this.think(thought);
    if (content) this.speak(content);
    if (calls) this.call(calls);
    this.redraw();
  }

  think(fresh) {
    if (!this.thoughts) {
      this.thoughts = new Thoughts();
      this.body.before(this.thoughts.node);
      this.node.dispatchEvent(new Event("thinking", { bubbles: true }));
    }
    this.source.add("reasoning_content", fresh);
  }

  speak(fresh) {
    if (!this.text) this.thoughts?.end();
    this.source.add("content", fresh);
  }

  call(news) {
    if (!this.calls.list.length) this.thoughts?.end();
    this.calls.add(news);
  }

  redraw() {
    if (this.drawn) return;
    this.drawn = true;
    requestAnimationFrame(() => this.draw());
  }

  draw() {
    this.drawn = false;
    this.tokens.follow(this.source.all);
    render(this.body, this.text, (placed) => this.leaf("content", placed));
    if (this.thoughts) render(this.thoughts.body, this.thought, (placed) => this.leaf("reasoning_content", placed));
    this.foot.textContent = this.measures();
    this.node.dispatchEvent(new Event("grown", { bubbles: true }));
  }

  /** Nodes of plain text of one of its texts, cut where tokens meet. */
  leaf(name, placed) {
    const token = (letter) => this.tokens.at(this.source.place(name, placed.at[letter]));
    const nodes = [];
    let begin = 0;
    while (begin < placed.text.length) {
      const index = token(begin);
      let end = begin + 1;
      while (end < placed.text.length && token(end) === index) end += 1;
      const text = placed.text.slice(begin, end);
      nodes.push(index < 0 ? document.createTextNode(text) : this.span(index, text));
      begin = end;
    }
    return nodes;
  }

  span(index, text) {
    const node = document.createElement("span");
    const doubt = DOUBTS.filter((most) => this.tokens.spans[index].probability < most).length;
    node.className = doubt ? `token doubt${doubt}` : "token";
    node.dataset.token = index;
    node.textContent = text;
    return node;
  }

  measures() {
    const count = this.usage?.completion_tokens ?? (this.tokens.count || this.chunks);
    const thought = this.usage?.completion_tokens_details?.reasoning_tokens;
    const facts = [`${count} token${count === 1 ? "" : "s"}${thought ? `, ${thought} of them thoughts` : ""}`];
    if (count > 1 && this.last > this.first) {
      facts.push(`${((1000 * (count - 1)) / (this.last - this.first)).toFixed(1)} tokens/s`);
    }
    if (this.first !== null) facts.push(`first after ${((this.first - this.began) / 1000).toFixed(2)} s`);
    const cached = this.usage?.prompt_tokens_details?.cached_tokens;
    if (this.usage) facts.push(`${cached ?? 0} of ${this.usage.prompt_tokens} prompt tokens from the cache`);
    if (this.reason === "length") facts.push("ended by its length");
    if (this.reason === "content_filter") facts.push("ended by moderation");
    if (this.stopped) facts.push("stopped");
    return facts.join(" · ");
  }

  /** As it is sent back with the next message. */
  turn() {
    const thought = this.thought ? { reasoning_content: this.thought } : {};
    const calls = this.called.length ? { tool_calls: this.called } : {};
    return { role: "assistant", content: this.text, ...thought, ...calls };
  }

  /** Nothing more comes. `problem`: a sentence, where that was no proper end. */
  end(problem) {
    this.node.setAttribute("aria-busy", "false");
    this.thoughts?.end();
    this.tokens.end();
    this.draw();
    if (!problem) return;
    const line = part("p", "problem", problem);
    line.setAttribute("role", "alert");
    this.node.append(line);
  }
}
