// The list of conversations, and the menu of what can be done with one.

import { byId, iconButton, make } from "./dom.js";

export class Sidebar {
  #actions;
  #rows = new Map(); // by the id of the conversation

  /** `actions`: open(id), rename(id), exportMarkdown(id), exportJson(id), remove(id). */
  constructor(actions) {
    this.#actions = actions;
    byId("menu").addEventListener("toggle", (event) => {
      if (event.newState === "open") byId("menu").querySelector("button").focus();
    });
    byId("menu").addEventListener("keydown", (event) => {
      const by = { ArrowDown: 1, ArrowUp: -1 }[event.key];
      if (!by) return;
      event.preventDefault();
      const buttons = [...byId("menu").children];
      buttons[(buttons.indexOf(document.activeElement) + by + buttons.length) % buttons.length].focus();
    });
  }

  /** `open`: the id of the conversation that is shown; `writing`: of the one in which an answer is being written. */
  show(conversations, open, writing) {
    const held = document.activeElement;
    const rows = new Map(conversations.map(({ id }) => [id, this.#rows.get(id) ?? this.#made(id)]));
    this.#rows = rows;
    for (const { id, title } of conversations) {
      const { row, name, more } = rows.get(id);
      row.classList.toggle("writing", id === writing);
      name.textContent = name.title = title;
      if (id === open) name.setAttribute("aria-current", "true");
      else name.removeAttribute("aria-current");
      more.title = `Actions for ${title}`;
      more.setAttribute("aria-label", more.title);
    }
    byId("no-conversations").hidden = rows.size > 0;
    byId("conversations").replaceChildren(...[...rows.values()].map(({ row }) => row));
    if (byId("conversations").contains(held)) held.focus({ preventScroll: true }); // a row that moves loses it
  }

  #made(id) {
    const name = make("button", { type: "button", class: "name", on: { click: () => this.#actions.open(id) } });
    const more = iconButton("more", "", () => this.menu(id, more), {
      class: "plain more",
      attrs: { "aria-haspopup": "dialog" },
    });
    return { row: make("li", {}, name, more), name, more };
  }

  /** Opens the menu for a conversation beside `button`. */
  menu(id, button) {
    const menu = byId("menu");
    const entry = (text, name, kind = "") => {
      const act = () => {
        menu.hidePopover();
        button.focus();
        this.#actions[name](id);
      };
      return make("button", { type: "button", class: kind, on: { click: act } }, text);
    };
    menu.replaceChildren(
      entry("Rename", "rename"),
      entry("Export as Markdown", "exportMarkdown"),
      entry("Export as JSON", "exportJson"),
      entry("Delete", "remove", "danger"),
    );
    const box = button.getBoundingClientRect();
    menu.showPopover();
    const [width, height] = [menu.offsetWidth, menu.offsetHeight];
    const left = Math.min(box.left, window.innerWidth - width - 8);
    const top = box.bottom + height + 8 > window.innerHeight ? box.top - height - 4 : box.bottom + 4;
    menu.style.setProperty("left", `${Math.max(8, left)}px`);
    menu.style.setProperty("top", `${Math.max(8, top)}px`);
  }
}
