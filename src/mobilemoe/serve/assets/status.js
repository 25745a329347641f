// The line below the message field, and what is known of the server: its state, its model, its speed, its memory.

import * as api from "./api.js";
import { byId } from "./dom.js";
import { speedOf } from "./thread.js";

const WORDS = {
  loading: "The model is being loaded",
  draining: "The server is about to end",
  silent: "The server does not answer",
};

export class Status {
  ready = false;
  model = null; // its name
  shape = null; // { context, layers, experts, experts_per_token }
  isNew = false; // whether `look` has just learnt which model it is

  /** Asks the server how it is; the failure, where it answered with one. */
  async look() {
    this.isNew = false;
    const state = await api.health();
    this.ready = state === "ready";
    byId("state").textContent = this.ready ? (this.model ?? "Ready") : WORDS[state];
    byId("state").classList.toggle("waiting", !this.ready);
    if (!this.ready) {
      this.shape = null; // it may come back with another model
      return null;
    }
    try {
      if (!this.shape) await this.learn();
      if (!document.hidden) this.memory(); // not waited for: what is new is shown at once
      return null;
    } catch (fault) {
      return fault;
    }
  }

  /** Asks which model it is. ApiFailure. */
  async learn() {
    const { id, x_mobilemoe: shape } = await api.model();
    this.model = id;
    this.shape = shape ?? null;
    this.isNew = true;
    byId("state").textContent = byId("welcome-model").textContent = id;
    if (shape?.experts) {
      const share = `${shape.experts_per_token} of ${shape.experts} experts in each of its ${shape.layers} layers`;
      byId("welcome-facts").textContent = `For each token it uses ${share}. Your conversations stay in this browser.`;
    }
  }

  async memory() {
    const bytes = await api.memory();
    byId("memory").textContent = bytes === null ? "" : `${Math.round(bytes / 1e6).toLocaleString("en")} MB memory`;
  }

  /** Shows the speed of the newest answer and how much of the context the conversation fills. */
  conversation(messages) {
    const stats = messages.findLast((message) => message.stats?.tokens)?.stats;
    byId("speed").textContent = stats ? speedOf(stats) : "";
    const used = stats?.prompt ? stats.prompt + stats.tokens : 0;
    const context = this.shape?.context;
    byId("fill").textContent =
      used && context ? `${used.toLocaleString("en")} of ${context.toLocaleString("en")} tokens` : "";
  }
}
