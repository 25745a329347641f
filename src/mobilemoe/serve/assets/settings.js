// The settings' form: it shows the settings of a conversation, and writes what is entered back into them.

import { DEFAULTS, NUMBERS, schemaFault } from "./conversation.js";
import { byId, make } from "./dom.js";

const FIRST = 3; // of the numbers stand outside of "More sampling"
const EXAMPLE = JSON.stringify(
  { type: "object", properties: { answer: { type: "string" } }, required: ["answer"], additionalProperties: false },
  null,
  2,
);

export class Settings {
  #form = byId("settings-form");
  #settings = { ...DEFAULTS };
  #onChange;

  /** `onChange` is called after each change that is valid. */
  constructor(onChange) {
    this.#onChange = onChange;
    for (const [place, row] of NUMBERS.entries()) byId(place < FIRST ? "numbers" : "more-numbers").append(field(row));
    this.#form.addEventListener("input", (event) => this.#take(event.target));
    this.#form.addEventListener("submit", (event) => event.preventDefault());
    byId("reset").addEventListener("click", () => {
      Object.assign(this.#settings, DEFAULTS);
      this.show(this.#settings);
      this.#onChange();
    });
  }

  show(settings) {
    this.#settings = settings;
    for (const [name, value] of Object.entries(settings)) {
      const input = this.#form.elements[name];
      if (input && input.value !== String(value ?? "")) input.value = value ?? "";
      const number = byId(`set-${name}`);
      if (number?.type === "number") number.setAttribute("aria-invalid", "false");
    }
    this.#showSchema();
  }

  #showSchema() {
    const asked = this.#settings.format === "schema";
    byId("schema-field").hidden = !asked;
    byId("schema-fault").textContent = asked ? (schemaFault(this.#settings.schema) ?? "") : "";
  }

  #take(input) {
    if (input.type === "number") {
      const valid = input.validity.valid && (input.value !== "" || DEFAULTS[input.name] === null);
      input.setAttribute("aria-invalid", String(!valid));
      if (!valid) return;
      this.#settings[input.name] = input.value === "" ? null : input.valueAsNumber;
    } else this.#settings[input.name] = input.value;
    if (input.name === "format" && input.value === "schema" && !this.#settings.schema) {
      this.#settings.schema = byId("set-schema").value = EXAMPLE;
    }
    this.#showSchema();
    this.#onChange();
  }
}

function field([name, label, min, max, step, hint]) {
  const about = `about-${name}`;
  const optional = DEFAULTS[name] === null;
  const input = make("input", {
    type: "number",
    id: `set-${name}`,
    name,
    min,
    max,
    step: step < 1 ? "any" : step,
    required: !optional,
    attrs: { "aria-describedby": about, inputmode: "decimal" },
  });
  return make(
    "div",
    { class: "number" },
    make("label", { htmlFor: `set-${name}` }, label),
    input,
    make("p", { id: about, class: "hint" }, hint),
  );
}
