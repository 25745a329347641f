// Questions to the user: a text, or yes or no.

import { byId } from "./dom.js";

/**
 * Opens the dialog and resolves to what was entered, or to null if it was cancelled. `label`: of the field; without
 * one the answer is "" for yes. `check(text)` may give a fault, and the dialog stays open.
 */
export function ask({
  title,
  text = "",
  label = null,
  value = "",
  go,
  danger = false,
  secret = false,
  check = () => null,
}) {
  const dialog = byId("ask");
  const field = byId("ask-input");
  byId("ask-title").textContent = title;
  byId("ask-text").textContent = text;
  byId("ask-text").hidden = !text;
  byId("ask-label").textContent = label ?? "";
  byId("ask-label").hidden = field.hidden = label === null;
  byId("ask-fault").textContent = "";
  byId("ask-go").textContent = go;
  byId("ask-go").classList.toggle("danger", danger);
  field.type = secret ? "password" : "text";
  field.value = value;
  return new Promise((resolve) => {
    const form = dialog.querySelector("form");
    const finish = (result) => {
      form.onsubmit = dialog.onclose = byId("ask-cancel").onclick = null;
      field.value = "";
      if (dialog.open) dialog.close();
      resolve(result);
    };
    form.onsubmit = async (event) => {
      event.preventDefault();
      const entered = field.value;
      const fault = await check(entered);
      if (fault) {
        byId("ask-fault").textContent = fault;
        field.select();
      } else finish(entered);
    };
    byId("ask-cancel").onclick = () => finish(null);
    dialog.onclose = () => finish(null);
    dialog.showModal();
    if (label !== null) field.select();
    else byId("ask-cancel").focus();
  });
}
