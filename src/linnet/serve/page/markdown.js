// SPDX-License-Identifier: Apache-2.0
// Markdown as models write it: headings, paragraphs, lists, quotes, code, tables, rules. HTML is text like any other.
// A block whose source has not changed keeps its nodes, so that a stream costs its last block only.

import { Placed, inline } from "./inline.js";

const FENCE = /^ {0,3}(?:(`{3,})([^`]*)|(~{3,})(.*))$/;
const HEADING = /^ {0,3}(#{1,6})(?:\s+|$)/;
const RULE = /^ {0,3}([-*_])(?:\s*\1){2,}\s*$/;
const QUOTE = /^ {0,3}> ?/;
const ITEM = /^( {0,3})([-*+]|\d{1,9}[.)])( +|$)/;
const DIVIDER = /^ {0,3}\|?\s*:?-+:?\s*(?:\|\s*:?-+:?\s*)*\|?\s*$/;
const DEEPEST = 12;

/** Show `source` in `container`; `leaf(placed)` makes the nodes of plain text. */
export function render(container, source, leaf) {
  const blocks = split(lines(source));
  blocks.forEach((block, index) => {
    const known = container.children[index];
    const print = JSON.stringify([block.kind, block.lines.map((line) => line.text)]);
    if (known?.print === print) return;
    const node = build(block, leaf, 0);
    node.print = print;
    if (known) known.replaceWith(node);
    else container.append(node);
  });
  while (container.children.length > blocks.length) container.lastElementChild.remove();
}

function lines(source) {
  let start = 0;
  return source.split("\n").map((text) => {
    const line = Placed.of(text, start);
    start += text.length + 1;
    return line;
  });
}

/** The blocks of some lines: {kind, lines, …}. */
function split(all) {
  const blocks = [];
  let row = 0;
  while (row < all.length) {
    const text = all[row].text;
    if (!text.trim()) {
      row += 1;
      continue;
    }
    const kind = [fence, heading, rule, quote, list, table].find((one) => one.starts(text, all[row + 1]?.text));
    const block = (kind ?? paragraph).read(all, row);
    blocks.push(block);
    row = block.end;
  }
  return blocks;
}

function block(kind, all, begin, end, more = {}) {
  return { kind, lines: all.slice(begin, end), end, ...more };
}

const fence = {
  starts: (text) => FENCE.test(text),
  read(all, row) {
    const found = FENCE.exec(all[row].text);
    const mark = found[1] ?? found[3];
    const language = (found[2] ?? found[4]).trim().split(/\s/)[0];
    const closing = new RegExp(`^ {0,3}${mark[0]}{${mark.length},}\\s*$`);
    let end = row + 1;
    while (end < all.length && !closing.test(all[end].text)) end += 1;
    const body = all.slice(row + 1, end);
    return block("code", all, row, Math.min(end + 1, all.length), { body, language });
  },
};

const heading = {
  starts: (text) => HEADING.test(text),
  read: (all, row) => block("heading", all, row, row + 1),
};

const rule = {
  starts: (text) => RULE.test(text),
  read: (all, row) => block("rule", all, row, row + 1),
};

const quote = {
  starts: (text) => QUOTE.test(text),
  read(all, row) {
    let end = row;
    while (end < all.length && QUOTE.test(all[end].text)) end += 1;
    return block("quote", all, row, end);
  },
};

const list = {
  starts: (text) => ITEM.test(text),
  /** Items of one kind; what is indented belongs to its item, an empty line may stand between. */
  read(all, row) {
    const ordered = /\d/.test(ITEM.exec(all[row].text)[2]);
    const items = [];
    let end = row;
    while (end < all.length) {
      const text = all[end].text;
      const found = RULE.test(text) ? null : ITEM.exec(text);
      const inside = items.length ? items.at(-1).indent : 0;
      const indent = text.length - text.trimStart().length;
      if (found && found[1].length < Math.max(inside, 1) && /\d/.test(found[2]) === ordered) {
        const width = found[0].length - Math.max(found[3].length - 4, 0);
        items.push({ indent: width, lines: [all[end].slice(width)], number: found[2] });
      } else if (!text.trim()) {
        const next = all.slice(end).find((line) => line.text.trim())?.text ?? "";
        const nextIndent = next.length - next.trimStart().length;
        const more = nextIndent >= Math.min(inside, 2) && nextIndent > 0;
        const again = ITEM.exec(next);
        if (!more && !(again && /\d/.test(again[2]) === ordered && !RULE.test(next))) break;
        items.at(-1).lines.push(all[end]);
      } else if (indent > 0 && items.length) {
        items.at(-1).lines.push(all[end].slice(Math.min(indent, inside)));
      } else if (items.length && all[end - 1].text.trim() && !found && !interrupts(text)) {
        items.at(-1).lines.push(all[end]); // a paragraph that goes on without indentation
      } else break;
      end += 1;
    }
    return block("list", all, row, end, { ordered, items });
  },
};

const table = {
  starts: (text, next) => text.includes("|") && next !== undefined && next.includes("-") && DIVIDER.test(next) && cells(Placed.of(text, 0)).length === cells(Placed.of(next, 0)).length,
  read(all, row) {
    let end = row + 2;
    while (end < all.length && all[end].text.includes("|")) end += 1;
    return block("table", all, row, end);
  },
};

const paragraph = {
  read(all, row) {
    let end = row + 1;
    while (end < all.length && all[end].text.trim() && !interrupts(all[end].text)) end += 1;
    return block("paragraph", all, row, end);
  },
};

function interrupts(text) {
  return [FENCE, HEADING, RULE, QUOTE].some((shape) => shape.test(text)) || (ITEM.test(text) && !/^ {0,3}\d{2,}/.test(text));
}

function element(tag, children = []) {
  const node = document.createElement(tag);
  node.append(...children);
  return node;
}

function build(one, leaf, depth) {
  return BUILD[depth > DEEPEST ? "paragraph" : one.kind](one, leaf, depth);
}

const BUILD = {
  paragraph: ({ lines: all }, leaf) => element("p", inline(Placed.join(all.map((line) => hardEnd(line)), "\n"), leaf)),

  heading({ lines: [line] }, leaf) {
    const [whole, marks] = HEADING.exec(line.text);
    const node = element(`h${Math.min(marks.length + 2, 6)}`); // the page itself has h1 and h2
    const text = line.slice(whole.length);
    node.append(...inline(text.slice(0, text.text.replace(/\s+#+\s*$/, "").length).trim(), leaf));
    return node;
  },

  rule: () => element("hr"),

  quote: ({ lines: all }, leaf, depth) =>
    element("blockquote", nested(all.map((line) => line.slice(QUOTE.exec(line.text)[0].length)), leaf, depth)),

  code({ body, language }, leaf) {
    const text = Placed.join(body, "\n");
    const copy = element("button", ["Copy"]);
    copy.type = "button";
    copy.className = "copy quiet";
    copy.addEventListener("click", async () => {
      await navigator.clipboard.writeText(text.text);
      copy.textContent = "Copied";
    });
    const pre = element("pre", [element("code", leaf(text))]);
    pre.tabIndex = 0; // it may be wider than the page: keys scroll it
    const node = element("div", [element("span", [language]), copy, pre]);
    node.className = "code";
    return node;
  },

  list({ ordered, items }, leaf, depth) {
    const node = element(ordered ? "ol" : "ul");
    if (ordered) node.start = Number.parseInt(items[0].number, 10);
    for (const item of items) {
      const children = nested(item.lines, leaf, depth);
      const tight = !item.lines.some((line, index) => index && !line.text.trim());
      const first = children[0];
      if (tight && first?.tagName === "P") children.splice(0, 1, ...first.childNodes);
      node.append(element("li", children));
    }
    return node;
  },

  table({ lines: [head, , ...rows] }, leaf) {
    const row = (line, tag) => element("tr", cells(line).map((cell) => element(tag, inline(cell, leaf))));
    const whole = element("table", [element("thead", [row(head, "th")]), element("tbody", rows.map((line) => row(line, "td")))]);
    const node = element("div", [whole]);
    node.className = "table";
    node.tabIndex = 0;
    return node;
  },
};

function nested(all, leaf, depth) {
  if (depth >= DEEPEST) return inline(Placed.join(all, "\n"), leaf);
  return split(all).map((one) => build(one, leaf, depth + 1));
}

/** A line of a paragraph: indentation goes, spaces at its end stay (two of them break the line). */
function hardEnd(line) {
  return line.slice(line.text.length - line.text.trimStart().length);
}

/** Cells of a table's row: what is between bars that no \ precedes. */
function cells(line) {
  const inner = line.trim();
  const bars = [...inner.text.matchAll(/(?<!\\)\|/g)].map((found) => found.index);
  const places = [-1, ...bars, inner.text.length];
  const all = places.slice(1).map((end, index) => inner.slice(places[index] + 1, end).trim());
  if (inner.text.startsWith("|")) all.shift();
  if (inner.text.endsWith("|") && all.length > 1) all.pop();
  return all;
}
