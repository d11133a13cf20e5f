// SPDX-License-Identifier: Apache-2.0
// What a model thought before it answered: open while it thinks, closed once it speaks, then as the reader leaves it.

export class Thoughts {
  constructor() {
    this.node = document.createElement("details");
    this.node.className = "thoughts";
    this.node.open = true;
    this.head = document.createElement("summary");
    this.head.textContent = "Thinking …";
    this.body = document.createElement("div");
    this.body.className = "body thought";
    this.body.tabIndex = 0;
    this.body.setAttribute("aria-label", "Thoughts");
    this.body.setAttribute("role", "group");
    this.body.setAttribute("aria-live", "off"); // the answer is what is read aloud
    this.node.append(this.head, this.body);
    this.touched = false;
    this.head.addEventListener("click", () => (this.touched = true));
  }

  /** It speaks, or nothing more comes. */
  end() {
    this.head.textContent = "Thoughts";
    if (!this.touched) this.node.open = false;
  }
}
