// The messages of a conversation on the page.

import { versions } from "./conversation.js";
import { copyText, iconButton, make } from "./dom.js";
import { codeBlock, showMarkdown } from "./markdown.js";

const LONG = 60000; // characters; a longer text is shown as it is
const ENDS = {
  length: "Cut off: the answer reached its longest length, or the end of the context.",
  stopped: "Stopped.",
};

export class Thread {
  #list;
  #actions;
  #shown = new Map(); // id: { node, body, foot }
  #conversation = null;

  /** `actions`: regenerate(message), resend(message, text), show(version). */
  constructor(list, actions) {
    this.#list = list;
    this.#actions = actions;
  }

  /** Shows `messages`, the path of `conversation`. The button that had the focus has it again, or else its message. */
  show(conversation, messages) {
    const same = this.#conversation?.id === conversation.id;
    const held = document.activeElement?.closest("#thread button, #thread > li");
    const [place, label] = [[...this.#list.children].indexOf(held?.closest("li.message")), held?.ariaLabel];
    this.#conversation = conversation;
    this.#shown.clear();
    this.#list.replaceChildren(...messages.map((message) => this.#made(message)));
    const node = same && this.#list.children[place];
    if (!node) return;
    const again = [...node.querySelectorAll("button:enabled")].find((each) => label && each.ariaLabel === label);
    (again ?? node).focus({ preventScroll: true });
  }

  #made(message) {
    const mine = message.role === "user";
    const body = make("div", { class: "text" });
    const foot = make("div", { class: "foot" });
    const name = make("h2", { class: "unseen" }, mine ? "You" : "Assistant");
    const node = make("li", { class: mine ? "message mine" : "message", tabIndex: -1 }, name, body, foot);
    this.#shown.set(message.id, { node, body, foot });
    this.update(message);
    return node;
  }

  /** Shows what has changed of a message. */
  update(message) {
    const shown = this.#shown.get(message.id);
    if (!shown) return;
    const { node, body, foot } = shown;
    const writing = message.role === "assistant" && message.finish === null;
    node.classList.toggle("writing", writing);
    node.setAttribute("aria-busy", String(writing));
    if (message.role === "user") body.textContent = message.text;
    else if (message.format === "json")
      body.replaceChildren(...(message.text ? [codeBlock(message.text, "json")] : []));
    else if (message.text.length > LONG) body.textContent = message.text;
    else showMarkdown(body, message.text);
    foot.replaceChildren(...(writing ? [] : this.#foot(message)));
  }

  #foot(message) {
    const parts = [];
    if (message.finish === "failed") {
      const again = make(
        "button",
        { type: "button", class: "plain", on: { click: () => this.#actions.regenerate(message) } },
        "Try again",
      );
      parts.push(make("p", { class: "failure", attrs: { role: "alert" } }, message.error, " ", again));
    }
    if (ENDS[message.finish]) parts.push(make("p", { class: "ending" }, ENDS[message.finish]));
    if (message.finish === "failed" && !message.text) return parts;
    const row = make("div", { class: "row" });
    const copy = iconButton("copy", "Copy", () => copyText(message.text, copy));
    if (message.role === "user")
      row.append(
        iconButton("edit", "Edit and send again", () => this.edit(message), { class: "plain edit" }),
        copy,
      );
    else
      row.append(
        copy,
        iconButton("again", "Write another answer", () => this.#actions.regenerate(message), { class: "plain again" }),
      );
    row.append(...this.#versions(message));
    if (message.stats?.tokens) row.append(make("span", { class: "stats" }, statsOf(message.stats)));
    parts.push(row);
    return parts;
  }

  #versions(message) {
    const all = versions(this.#conversation, message);
    if (all.length < 2) return [];
    const place = all.indexOf(message);
    const step = (name, label, to) =>
      iconButton(name, label, () => this.#actions.show(all[to]), { disabled: !all[to], class: `plain ${name}` });
    const text = make(
      "span",
      { class: "count", attrs: { "aria-label": `Version ${place + 1} of ${all.length}` } },
      `${place + 1}/${all.length}`,
    );
    return [step("left", "Earlier version", place - 1), text, step("right", "Later version", place + 1)];
  }

  /** Turns the user's message into a field; sending it makes a new version of the message. */
  edit(message) {
    const { body, foot, node } = this.#shown.get(message.id);
    const field = make("textarea", {
      value: message.text,
      class: "editor",
      attrs: { "aria-label": "Edit your message" },
    });
    const close = () => {
      node.classList.remove("editing");
      this.update(message);
      foot.querySelector(".edit")?.focus();
    };
    const send = () => {
      if (field.value.trim()) this.#actions.resend(message, field.value);
    };
    field.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
        event.preventDefault();
        send();
      } else if (event.key === "Escape") {
        event.stopPropagation();
        close();
      }
    });
    const cancel = make("button", { type: "button", class: "plain", on: { click: close } }, "Cancel");
    const go = make("button", { type: "button", class: "solid worded", on: { click: send } }, "Send");
    node.classList.add("editing");
    body.replaceChildren(field);
    foot.replaceChildren(make("div", { class: "row end" }, cancel, go));
    field.focus();
    field.setSelectionRange(field.value.length, field.value.length);
  }

  /** Moves the focus to the next or previous message. */
  step(by) {
    const nodes = [...this.#list.children];
    const at = nodes.indexOf(document.activeElement?.closest(".message"));
    const next = at < 0 ? (by > 0 ? 0 : nodes.length - 1) : Math.min(nodes.length - 1, Math.max(0, at + by));
    nodes[next]?.focus();
    nodes[next]?.scrollIntoView({ block: "nearest" });
  }
}

/** Tokens over all the time since the request was sent: their arrival alone says little, as several come at once. */
export function speedOf({ tokens, first, seconds }) {
  return tokens && first ? `${Math.round(tokens / (first + seconds)).toLocaleString("en")} tokens/s` : "";
}

function statsOf(stats) {
  const first = stats.first >= 0.05 ? `first after ${stats.first.toFixed(1)} s` : "";
  return [`${stats.tokens.toLocaleString("en")} token${stats.tokens === 1 ? "" : "s"}`, speedOf(stats), first]
    .filter(Boolean)
    .join(" · ");
}
