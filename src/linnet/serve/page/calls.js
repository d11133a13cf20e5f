// SPDX-License-Identifier: Apache-2.0
// Functions that an answer calls, as they come: name and arguments.

export class Calls {
  constructor() {
    this.node = document.createElement("div");
    this.node.className = "calls";
    this.list = []; // as they are sent back
  }

  /** News of calls, as `delta.tool_calls` has them. */
  add(news) {
    for (const { index, id, function: { name, arguments: more } } of news) {
      if (name) this.begin(id, name);
      const call = this.list[index].function;
      call.arguments += more ?? "";
      this.node.children[index].querySelector("code").textContent = call.arguments;
    }
  }

  begin(id, name) {
    this.list.push({ id, type: "function", function: { name, arguments: "" } });
    const block = document.createElement("div");
    block.className = "code";
    block.setAttribute("role", "group");
    block.setAttribute("aria-label", `Call of ${name}`);
    const head = document.createElement("span");
    head.textContent = name;
    const body = document.createElement("pre");
    body.tabIndex = 0;
    body.append(document.createElement("code"));
    block.append(head, body);
    this.node.append(block);
  }
}
