// The keyboard: single keys outside of text fields, which can be turned off, and a few that always hold.

import { byId, make } from "./dom.js";
import { recall, remember } from "./memory.js";

const FIELDS = "input:not([type=radio], [type=checkbox], [type=range], [type=file]), textarea, select";

/** `keys`: [[key, what it does, action]]. */
export function listen(keys) {
  const always = [
    ["Enter", "Send the message"],
    ["Shift+Enter", "Begin a new line"],
    ["Escape", "Stop the answer, or leave the message field"],
  ];
  for (const [key, what] of [...always, ...keys]) {
    const shown = key.split("+").flatMap((part, place) => [...(place ? ["+"] : []), make("kbd", {}, part)]);
    byId("keys").append(make("dt", {}, ...shown), make("dd", {}, what));
  }
  const on = byId("single-keys");
  on.checked = recall("single-keys", true);
  on.addEventListener("change", () => remember("single-keys", on.checked));
  const actions = new Map(keys.map(([key, , action]) => [key, action]));
  document.addEventListener("keydown", (event) => {
    const busy = event.ctrlKey || event.metaKey || event.altKey || event.isComposing || event.defaultPrevented;
    if (busy || !on.checked || event.target.matches(FIELDS) || document.querySelector("dialog[open], :popover-open"))
      return;
    const action = actions.get(event.key);
    if (!action) return;
    event.preventDefault();
    action();
  });
}
