// SPDX-License-Identifier: Apache-2.0
// All letters of an answer in the order they came, which is the order of its tokens, and where each letter of its texts
// (what is said, what is thought) lies among them.

export class Source {
  constructor() {
    this.all = "";
    this.texts = {}; // name -> {text, parts: [begin in the text, begin in all]}
  }

  /** More letters of one text. */
  add(name, fresh) {
    const one = (this.texts[name] ??= { text: "", parts: [] });
    const [begin, place] = one.parts.at(-1) ?? [0, NaN];
    if (place + one.text.length - begin !== this.all.length) one.parts.push([one.text.length, this.all.length]);
    one.text += fresh;
    this.all += fresh;
  }

  text(name) {
    return this.texts[name]?.text ?? "";
  }

  /** Where the letter at `index` of a text lies in all of them. */
  place(name, index) {
    const [begin, place] = this.texts[name].parts.findLast(([begin]) => begin <= index);
    return place + index - begin;
  }
}
