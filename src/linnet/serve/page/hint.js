// SPDX-License-Identifier: Apache-2.0
// How likely a token was and what else could have stood there: under the pointer, or where the arrow keys have gone.

const box = document.getElementById("hint");
const news = document.getElementById("news");
const MARGIN = 8;

const percent = (probability) => `${(100 * probability).toFixed(probability < 0.1 ? 2 : 1)} %`;
const shown = (token) => JSON.stringify(token.token).slice(1, -1) || "(nothing)";

// Different tokens may look the same: a byte that is no letter, a letter that two tokens stand for.
const same = (one, other) => String(one.bytes) === String(other.bytes) && one.logprob === other.logprob;

let marked = null;

function rowOf(label, probability, chosen) {
  const row = document.createElement("tr");
  if (chosen) row.className = "chosen";
  const name = document.createElement("th");
  name.textContent = label;
  const value = document.createElement("td");
  value.textContent = percent(probability);
  const bar = document.createElement("td");
  const meter = document.createElement("i");
  meter.style.width = `${Math.max(1, 60 * probability)}px`;
  bar.append(meter);
  row.append(name, bar, value);
  return row;
}

function table(span) {
  const whole = document.createElement("table");
  if (span.chosen.length > 1) {
    whole.append(rowOf(`${span.chosen.length} tokens`, span.probability, true));
    return whole;
  }
  const [token] = span.chosen;
  const others = token.top_logprobs ?? [];
  const own = others.findIndex((one) => same(one, token));
  others.forEach((one, index) => whole.append(rowOf(shown(one), Math.exp(one.logprob), index === own)));
  if (own < 0) whole.append(rowOf(shown(token), span.probability, true));
  return whole;
}

function show(node) {
  const answer = node.closest("article")?.answer;
  const span = answer?.tokens.spans[node.dataset.token];
  if (!span) return hide();
  marked?.classList.remove("marked");
  marked = node;
  node.classList.add("marked");
  box.replaceChildren(table(span));
  box.hidden = false;
  const [place] = node.getClientRects();
  const below = place.bottom + MARGIN + box.offsetHeight < innerHeight;
  box.style.left = `${Math.max(MARGIN, Math.min(place.left, innerWidth - box.offsetWidth - MARGIN))}px`;
  box.style.top = `${below ? place.bottom + MARGIN / 2 : Math.max(MARGIN, place.top - box.offsetHeight - MARGIN / 2)}px`;
  return span;
}

function hide() {
  marked?.classList.remove("marked");
  marked = null;
  box.hidden = true;
}

/** The next token that is on the page, in one direction. */
function neighbour(body, step) {
  const all = [...body.querySelectorAll(".token")];
  const here = all.indexOf(marked);
  if (here < 0) return step > 0 ? all[0] : all.at(-1);
  return all[here + step];
}

/** Listen on a container of answers. */
export function hints(container) {
  container.addEventListener("pointerover", (event) => {
    const node = event.target.closest?.(".token");
    if (node) show(node);
    else hide();
  });
  container.addEventListener("pointerleave", hide);
  container.addEventListener("scroll", hide, { passive: true });
  container.addEventListener("focusout", hide);
  container.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    const body = event.target;
    if (!step || !body.classList?.contains("body") || event.ctrlKey || event.altKey || event.metaKey) return;
    const node = neighbour(body, step);
    if (!node) return;
    event.preventDefault();
    node.scrollIntoView({ block: "nearest" });
    const span = show(node);
    if (span) news.textContent = `${node.textContent}, ${percent(span.probability)}`;
  });
  addEventListener("keydown", (event) => event.key === "Escape" && hide());
}
