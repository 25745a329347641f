// Tells a screen reader of a growing answer, sentence by sentence and without interrupting it.

import { make } from "./dom.js";

const SENTENCE = /[.!?:]["')\]]*\s|\n/g;
const MOST = 30; // paragraphs that stay in the region

export class Announcer {
  #region;
  #told = 0;

  constructor(region) {
    this.#region = region;
  }

  /** A new answer begins. */
  begin() {
    this.#told = 0;
    this.#region.replaceChildren();
  }

  /** The answer so far; `done` with the last of it. */
  grow(text, done) {
    let end = done ? text.length : this.#told;
    if (!done) {
      SENTENCE.lastIndex = this.#told;
      for (let found = SENTENCE.exec(text); found; found = SENTENCE.exec(text)) end = SENTENCE.lastIndex;
    }
    const sentences = text.slice(this.#told, end).trim();
    this.#told = end;
    if (sentences) this.say(sentences);
  }

  say(text) {
    this.#region.append(make("p", {}, text));
    if (this.#region.childElementCount > MOST) this.#region.firstElementChild.remove();
  }
}
