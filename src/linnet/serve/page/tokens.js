// SPDX-License-Identifier: Apache-2.0
// Which token each letter of an answer came from. The server sends tokens as bytes, and text when it is whole and no stop
// string can lie in it: tokens may be ahead of the text, and several of them may be one letter.

/** A token in the text: letters [begin, end), the chosen tokens (several for one letter), their joint probability. */
class Span {
  constructor(begin, end, chosen) {
    this.begin = begin;
    this.end = end;
    this.chosen = chosen;
  }

  get probability() {
    return Math.exp(this.chosen.reduce((sum, token) => sum + token.logprob, 0));
  }
}

/** How many bytes at the end begin a letter that is not whole: they wait. */
function unfinished(bytes) {
  for (let back = 1; back <= Math.min(3, bytes.length); back += 1) {
    const byte = bytes[bytes.length - back];
    if (byte >= 0x80 && byte < 0xc0) continue; // it continues a letter
    const length = byte < 0xc2 || byte > 0xf4 ? 1 : byte < 0xe0 ? 2 : byte < 0xf0 ? 3 : 4;
    return length > back ? back : 0;
  }
  return 0;
}

export class Tokens {
  constructor() {
    this.spans = [];
    this.count = 0;
    this.waiting = []; // {text, chosen} that the text has not shown yet
    this.bytes = []; // of a letter that is not whole
    this.owners = []; // the token of each of them
    this.decoder = new TextDecoder("utf-8", { ignoreBOM: true });
    this.place = 0;
    this.ended = false;
  }

  /** More tokens, as `logprobs.content` has them. */
  add(content) {
    for (const token of content) {
      this.count += 1;
      for (const byte of token.bytes ?? []) {
        this.bytes.push(byte);
        this.owners.push(token);
      }
      this.release(this.bytes.length - unfinished(this.bytes));
    }
  }

  /** No more tokens come: a letter that is not whole is shown as what it is. */
  end() {
    this.release(this.bytes.length);
    this.ended = true;
  }

  /** The first `count` bytes are text. */
  release(count) {
    if (!count) return;
    const text = this.decoder.decode(Uint8Array.from(this.bytes.splice(0, count)));
    this.waiting.push({ text, chosen: [...new Set(this.owners.splice(0, count))] });
  }

  /** Find the waiting tokens in the text as it is now. What it does not show (special tokens) has no span. */
  follow(source) {
    while (this.waiting.length) {
      const { text, chosen } = this.waiting[0];
      let shown = this.find([text, text.trimStart()], source);
      if (shown === undefined) {
        if (!this.ended && source.length - this.place < text.length) return; // the text is still to come
        shown = this.find([text.trimEnd(), text.trim()], source); // white space where thoughts end means nothing
      }
      this.waiting.shift();
      if (shown === undefined) continue;
      this.spans.push(new Span(this.place, this.place + shown.length, chosen));
      this.place += shown.length;
    }
  }

  /** The first of some texts that stands where the next token would. */
  find(texts, source) {
    return texts.find((one) => one && source.startsWith(one, this.place));
  }

  /** The index of the span that has this letter, or -1. */
  at(letter) {
    let low = 0;
    let high = this.spans.length - 1;
    while (low <= high) {
      const middle = (low + high) >> 1;
      const { begin, end } = this.spans[middle];
      if (letter < begin) high = middle - 1;
      else if (letter >= end) low = middle + 1;
      else return middle;
    }
    return -1;
  }
}
