// Making elements. Text becomes text nodes only: nothing here, or anywhere on the page, turns a string into HTML.

const SVG = "http://www.w3.org/2000/svg";

// Drawn with strokes in a square of 24.
const ICONS = {
  again: ["M20 12a8 8 0 1 1-2.6-5.9", "M20 3v4.5h-4.5"],
  check: ["M5 12.5l4.5 4.5L19 7.5"],
  close: ["M6 6l12 12", "M18 6L6 18"],
  copy: ["M9 9h10v11H9z", "M15 9V4H5v11h4"],
  down: ["M12 5v14", "M6 13l6 6 6-6"],
  edit: ["M4 20l1-4L16 5l3 3L8 19z", "M14 7l3 3"],
  grid: ["M4 4h6v6H4z", "M14 4h6v6h-6z", "M4 14h6v6H4z", "M14 14h6v6h-6z"],
  left: ["M14.5 6l-6 6 6 6"],
  list: ["M4 6h16", "M4 12h16", "M4 18h10"],
  more: ["M5 11.5h1v1h-1z", "M11.5 11.5h1v1h-1z", "M18 11.5h1v1h-1z"],
  plus: ["M12 5v14", "M5 12h14"],
  right: ["M9.5 6l6 6-6 6"],
  sliders: ["M4 7h9", "M17 7h3", "M15 5v4", "M4 17h3", "M11 17h9", "M9 15v4"],
  stop: ["M7 7h10v10H7z"],
  up: ["M12 19V5", "M6 11l6-6 6 6"],
};

export const byId = (id) => document.getElementById(id);

/** An element; `props` are properties, with `class`, `on` (listeners) and `attrs` beside them. */
export function make(tag, props = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (name === "class") node.className = value;
    else if (name === "on")
      for (const [event, listener] of Object.entries(value)) node.addEventListener(event, listener);
    else if (name === "attrs") for (const [attr, text] of Object.entries(value)) node.setAttribute(attr, text);
    else node[name] = value;
  }
  node.append(...children);
  return node;
}

export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", "0 0 24 24");
  svg.setAttribute("aria-hidden", "true");
  svg.classList.add("icon");
  for (const d of ICONS[name]) {
    const path = document.createElementNS(SVG, "path");
    path.setAttribute("d", d);
    svg.append(path);
  }
  return svg;
}

/** A small button with an icon; its name is read out, and shown when a pointer rests on it. */
export function iconButton(name, label, onClick, props = {}) {
  const attrs = { "aria-label": label, ...props.attrs };
  return make(
    "button",
    { type: "button", class: "plain", title: label, ...props, attrs, on: { click: onClick } },
    icon(name),
  );
}

/** Copies a text, and shows for a moment on `button` that this was done. */
export async function copyText(text, button) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    if (!copyByHand(text)) return; // the browser or its user forbids it
  }
  const shown = [...button.childNodes];
  button.replaceChildren(icon("check"));
  button.classList.add("done");
  setTimeout(() => {
    button.replaceChildren(...shown);
    button.classList.remove("done");
  }, 1200);
}

/** For pages over plain HTTP from another machine, which browsers give no clipboard. */
function copyByHand(text) {
  const held = document.activeElement;
  const field = make("textarea", { value: text, class: "unseen" });
  document.body.append(field);
  field.select();
  const done = document.execCommand("copy");
  field.remove();
  held?.focus();
  return done;
}

/** Offers `text` as a file to save. */
export function saveFile(name, type, text) {
  const url = URL.createObjectURL(new Blob([text], { type }));
  const link = make("a", { href: url, download: name });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(url), 1000);
}
