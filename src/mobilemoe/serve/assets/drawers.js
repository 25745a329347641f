// The list on the left and the panels on the right: columns on a wide screen, sheets over the page on a narrow one.

import { byId } from "./dom.js";

const NARROW = matchMedia("(max-width: 60rem)");
const LEFT = "sidebar";
const IDS = [LEFT, "settings", "routing"];

export class Drawers {
  #onChange;
  #opener = null;

  /** `onChange(id, isOpen)` is called after each change. */
  constructor(onChange) {
    this.#onChange = onChange;
    byId(LEFT).hidden = NARROW.matches;
    for (const id of IDS) byId(`toggle-${id}`).addEventListener("click", () => this.toggle(id));
    for (const button of document.querySelectorAll("[data-close]"))
      button.addEventListener("click", () => this.close(button.dataset.close));
    document.addEventListener("keydown", (event) => {
      const open = IDS.find((id) => byId(id).contains(event.target) && this.#isSheet(id));
      if (event.key === "Escape" && open && !event.defaultPrevented) {
        event.preventDefault();
        this.close(open);
      }
    });
    NARROW.addEventListener("change", () => {
      if (NARROW.matches) for (const id of IDS) byId(id).hidden = true;
      else byId(LEFT).hidden = false;
      this.#settle();
    });
    this.#settle();
  }

  isOpen = (id) => !byId(id).hidden;
  #isSheet = (id) => this.isOpen(id) && (NARROW.matches || id !== LEFT);

  toggle(id) {
    if (this.isOpen(id)) this.close(id);
    else this.open(id);
  }

  open(id) {
    for (const other of IDS)
      if (other !== id && (NARROW.matches || (other !== LEFT && id !== LEFT))) byId(other).hidden = true;
    byId(id).hidden = false;
    this.#opener = document.activeElement;
    this.#settle();
    byId(id).querySelector("[data-close]").focus();
    this.#onChange(id, true);
  }

  close(id) {
    const held = byId(id).contains(document.activeElement);
    byId(id).hidden = true;
    this.#settle();
    if (held)
      (this.#opener?.isConnected && this.#opener !== document.body ? this.#opener : byId(`toggle-${id}`)).focus();
    this.#onChange(id, false);
  }

  /** On a narrow screen closes what covers the conversation. */
  uncover() {
    if (NARROW.matches) for (const id of IDS) if (this.isOpen(id)) this.close(id);
  }

  #settle() {
    for (const id of IDS) byId(`toggle-${id}`).setAttribute("aria-expanded", String(this.isOpen(id)));
    byId("main").inert = NARROW.matches && IDS.some((id) => this.isOpen(id));
    document.body.classList.toggle("with-sidebar", this.isOpen(LEFT));
    document.body.classList.toggle(
      "with-panel",
      IDS.some((id) => id !== LEFT && this.isOpen(id)),
    );
  }
}
