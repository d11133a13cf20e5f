// SPDX-License-Identifier: Apache-2.0
// Markdown within a block: code, emphasis, links. It makes nodes, never HTML, so that no text of a model can become
// anything but text. Every letter keeps its place in the source (`at`), which is how tokens are found again.
// One pass and a short stack: time is linear in the text, whatever the text is.

const ESCAPED = /[!-/:-@[-`{-~]/;
const MARK = /[*_~]/;
const ADDRESS = /https?:\/\/[^\s<>"'`]+/y;
const TAGS = { "*": { 1: "em", 2: "strong" }, _: { 1: "em", 2: "strong" }, "~": { 1: "del", 2: "del" } };
const MOST_OPEN = 64;

/** A text whose letter i stands at place `at[i]` of the source. */
export class Placed {
  constructor(text = "", at = []) {
    this.text = text;
    this.at = at;
  }

  static of(text, start) {
    return new Placed(text, Array.from({ length: text.length }, (_, index) => start + index));
  }

  slice(begin, end = this.text.length) {
    return new Placed(this.text.slice(begin, end), this.at.slice(begin, end));
  }

  static join(parts, by) {
    const at = [];
    parts.forEach((part, index) => {
      if (index) at.push(at.length ? at[at.length - 1] + 1 : part.at[0] ?? 0);
      for (const place of part.at) at.push(place);
    });
    return new Placed(parts.map((part) => part.text).join(by), at);
  }

  trim() {
    const begin = this.text.length - this.text.trimStart().length;
    return this.slice(begin, Math.max(begin, this.text.trimEnd().length));
  }
}

/** An address that a link may have: the web or mail, nothing that runs. */
function safeAddress(text) {
  try {
    const url = new URL(text);
    return ["http:", "https:", "mailto:"].includes(url.protocol) ? url.href : null;
  } catch {
    return null;
  }
}

function link(address, children) {
  const node = document.createElement("a");
  node.href = address;
  node.target = "_blank";
  node.rel = "noopener noreferrer";
  node.append(...children);
  return node;
}

/** Nodes of a text. `leaf(placed)` makes the nodes of plain text. */
export function inline(placed, leaf) {
  return new Inline(placed, leaf).nodes();
}

class Inline {
  constructor(placed, leaf) {
    this.placed = placed;
    this.text = placed.text;
    this.leaf = leaf;
    this.out = []; // nodes, and null where an opening mark stands
    this.open = []; // marks that may still be closed: {mark, index in out, placed}
    this.plain = 0; // where the text begins that is not in `out` yet
    this.place = 0;
    this.missing = new Set(); // lengths of runs of ` that nothing closes further on
  }

  nodes() {
    const { text } = this;
    while (this.place < text.length) {
      const letter = text[this.place];
      if (letter === "\\" && ESCAPED.test(text[this.place + 1] ?? "")) {
        this.flush();
        this.plain = this.place + 1; // the letter itself
        this.place += 2;
      } else if (letter === "`") this.code();
      else if (MARK.test(letter)) this.mark(letter);
      else if (letter === "[" || (letter === "!" && text[this.place + 1] === "[")) this.link();
      else if (letter === "h" && !/\w/.test(text[this.place - 1] ?? " ")) this.address();
      else if (letter === "\n") this.lineEnd();
      else this.place += 1;
    }
    this.flush();
    for (const one of this.open) this.out[one.index] = this.leaf(one.placed);
    return this.out.flat();
  }

  flush(end = this.place) {
    if (end > this.plain) this.out.push(this.leaf(this.placed.slice(this.plain, end)));
    this.plain = end;
  }

  take(nodes, end) {
    this.flush();
    this.out.push(nodes);
    this.place = this.plain = end;
  }

  lineEnd() {
    const hard = /( {2,}|\\)$/.exec(this.text.slice(Math.max(this.plain, this.place - 8), this.place));
    if (!hard) {
      this.place += 1;
      return;
    }
    this.flush(this.place - hard[0].length);
    this.plain = this.place;
    this.take([document.createElement("br")], this.place + 1);
  }

  code() {
    const run = /`+/y;
    run.lastIndex = this.place;
    const fence = run.exec(this.text)[0];
    const begin = this.place + fence.length;
    const end = this.missing.has(fence.length) ? -1 : this.closing(fence, begin);
    if (end < 0) {
      this.missing.add(fence.length);
      this.place = begin;
      return;
    }
    const node = document.createElement("code");
    const inner = this.placed.slice(begin, end);
    const padded = /^ .*[^ ].* $/s.test(inner.text);
    node.append(...this.leaf(padded ? inner.slice(1, inner.text.length - 1) : inner));
    this.take([node], end + fence.length);
  }

  closing(fence, from) {
    const runs = /`+/g;
    runs.lastIndex = from;
    for (let found = runs.exec(this.text); found; found = runs.exec(this.text)) {
      if (found[0].length === fence.length) return found.index;
    }
    return -1;
  }

  mark(letter) {
    let end = this.place;
    while (this.text[end] === letter) end += 1;
    const before = this.text[this.place - 1] ?? " ";
    const after = this.text[end] ?? " ";
    const word = letter === "_";
    const opens = /\S/.test(after) && !(word && /\w/.test(before));
    const closes = /\S/.test(before) && !(word && /\w/.test(after));
    let left = end - this.place;
    if (left > 3 || !(opens || closes)) {
      this.place = end;
      return;
    }
    this.flush();
    while (closes && left) {
      const length = this.close(letter, left);
      if (!length) break;
      left -= length;
      this.plain += length;
    }
    if (opens && left) {
      for (const length of left === 3 ? [2, 1] : [left]) {
        this.open.push({ letter, length, index: this.out.length, placed: this.placed.slice(this.plain, this.plain + length) });
        this.out.push(null);
        this.plain += length;
      }
      while (this.open.length > MOST_OPEN) {
        const oldest = this.open.shift();
        this.out[oldest.index] = this.leaf(oldest.placed);
      }
    }
    this.place = end;
  }

  /** Close the nearest opening of this letter; how many letters that took, 0 if there is none. */
  close(letter, most) {
    for (let index = this.open.length - 1; index >= 0; index -= 1) {
      const opening = this.open[index];
      if (opening.letter !== letter || opening.length > most) continue;
      for (const inner of this.open.splice(index + 1)) this.out[inner.index] = this.leaf(inner.placed);
      this.open.pop();
      const node = document.createElement(TAGS[letter][opening.length]);
      node.append(...this.out.splice(opening.index + 1).flat());
      this.out[opening.index] = [node];
      return opening.length;
    }
    return 0;
  }

  /** [text](address). An image is shown as a link to it: nothing is fetched that nobody asked for. */
  link() {
    const image = this.text[this.place] === "!" ? 1 : 0;
    const shape = /!?\[([^[\]]{0,500})\]\(\s*<?([^\s()<>]{1,2000}(?:\([^\s()<>]{0,500}\)[^\s()<>]{0,500})?)>?(?:\s+"[^"]{0,500}")?\s*\)/y;
    shape.lastIndex = this.place;
    const found = shape.exec(this.text);
    const address = found && safeAddress(found[2]);
    if (!address) {
      this.place += 1 + image;
      return;
    }
    const begin = this.place + image + 1;
    const label = this.placed.slice(begin, begin + found[1].length);
    const children = label.text ? inline(label, this.leaf) : [document.createTextNode(address)];
    this.take([link(address, children)], this.place + found[0].length);
  }

  address() {
    ADDRESS.lastIndex = this.place;
    const found = ADDRESS.exec(this.text);
    const text = found?.[0].replace(/[.,;:!?)\]}*_~]+$/, "");
    const address = text && safeAddress(text);
    if (!address) {
      this.place += 1;
      return;
    }
    const end = this.place + text.length;
    this.take([link(address, this.leaf(this.placed.slice(this.place, end)))], end);
  }
}
