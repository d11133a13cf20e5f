// SPDX-License-Identifier: Apache-2.0
// The live picture of the engine, from GET /state.

const EVERY_MS = 500;
const POINTS = 120;
const WIDTH = 240;
const HEIGHT = 44;
const SVG = "http://www.w3.org/2000/svg";

const field = (id) => document.getElementById(id);
const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const rate = new Intl.NumberFormat("en", { maximumFractionDigits: 1, minimumFractionDigits: 1 });

export class Engine {
  /** `ask` reads the state; `failed` is told what went wrong. */
  constructor(ask, failed) {
    this.ask = ask;
    this.failed = failed;
    this.before = null;
    this.pace = [];
    this.line = document.createElementNS(SVG, "polyline");
    this.area = document.createElementNS(SVG, "polygon");
    field("pace").append(this.area, this.line);
  }

  /** Look again and again, while the page is seen. */
  async run() {
    for (;;) {
      if (!document.hidden) await this.look();
      await new Promise((resolve) => setTimeout(resolve, EVERY_MS));
    }
  }

  async look() {
    let state;
    try {
      state = await this.ask();
    } catch (error) {
      const wanted = error.status === 401 ? "a key is needed" : error.message;
      field("engine-state").textContent = error.status ? wanted : "the server does not answer";
      this.before = null;
      await this.failed(error);
      return;
    }
    field("engine-state").textContent = state.status === "ok" ? "" : state.status;
    this.figures(state);
    this.rates(state);
    this.blocks(state.kv_blocks, state.block_size);
    this.hits(state.prefix);
    field("memory").textContent = `Memory: ${gigabytes(state.memory.peak_bytes)} at the most so far, `
      + `${gigabytes(state.memory.predicted_bytes)} predicted`;
  }

  figures({ requests }) {
    field("running").textContent = whole.format(requests.running);
    field("waiting").textContent = whole.format(requests.waiting);
  }

  rates({ clock_s: clock, tokens }) {
    const { before } = this;
    this.before = { clock, tokens };
    if (!before || clock <= before.clock || tokens.computed < before.tokens.computed) return;
    const seconds = clock - before.clock;
    const generated = (tokens.generated - before.tokens.generated) / seconds;
    field("generated").textContent = rate.format(generated);
    field("computed").textContent = rate.format((tokens.computed - before.tokens.computed) / seconds);
    this.pace.push(generated);
    if (this.pace.length > POINTS) this.pace.shift();
    const top = Math.max(...this.pace);
    const step = WIDTH / (POINTS - 1);
    const left = WIDTH - step * (this.pace.length - 1);
    const height = (value) => HEIGHT - 1 - (top ? ((HEIGHT - 3) * value) / top : 0);
    const points = this.pace.map((value, index) => `${(left + index * step).toFixed(1)},${height(value).toFixed(1)}`);
    this.line.setAttribute("points", points.join(" "));
    this.area.setAttribute("points", [`${left.toFixed(1)},${HEIGHT}`, ...points, `${WIDTH},${HEIGHT}`].join(" "));
    field("pace-top").textContent = top ? `at most ${rate.format(top)}` : "";
    field("pace").setAttribute("aria-label", `Tokens per second: now ${rate.format(generated)}, at most ${rate.format(top)}`);
  }

  blocks({ total, used, cached, free }, size) {
    const parts = { used, cached, free };
    for (const [name, value] of Object.entries(parts)) {
      field(name).textContent = whole.format(value);
      field("blocks").querySelector(`.${name}`).style.flexGrow = value;
    }
    field("blocks-total").textContent = `${whole.format(total)} × ${size} tokens`;
    field("blocks").setAttribute("aria-label", `KV blocks: ${used} used, ${cached} cached, ${free} free`);
  }

  hits({ query_tokens: asked, hit_tokens: found }) {
    const share = asked ? found / asked : 0;
    field("hits").querySelector(".hit").style.flexGrow = share;
    field("hits").querySelector(".free").style.flexGrow = 1 - share;
    const text = asked ? `${(100 * share).toFixed(1)} % of ${whole.format(asked)} prompt tokens` : "none yet";
    field("hits-share").textContent = text;
    field("hits").setAttribute("aria-label", `Prefix hits: ${text}`);
  }
}

function gigabytes(bytes) {
  return bytes >= 1e9 ? `${(bytes / 1e9).toFixed(1)} GB` : `${whole.format(bytes / 1e6)} MB`;
}
