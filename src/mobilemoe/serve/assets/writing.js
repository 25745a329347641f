// Writing one answer: from the request to the last token. It changes the message and says when; it shows nothing.

import * as api from "./api.js";
import { requestFor } from "./conversation.js";

export class Writing {
  #abort = new AbortController();

  /** `message`: the empty answer that is to be written. `onChange` is called after each change but for its end. */
  constructor(conversation, message, onChange) {
    this.conversation = conversation;
    this.message = message;
    this.onChange = onChange;
  }

  stop() {
    this.#abort.abort();
  }

  /** Resolves when the answer has ended, whatever the reason; the failure, if that was it. */
  async run(model, routing) {
    const { conversation, message } = this;
    const asked = performance.now();
    let first = null;
    let finish = null; // the message has it once the stream has ended: until then no other can be written
    message.format = conversation.settings.format === "text" ? "text" : "json";
    message.stats = { tokens: 0, prompt: 0, first: 0, seconds: 0 };
    try {
      const body = requestFor(conversation, message.parent, model, Boolean(routing));
      if (routing) message.routing = { ...routing, pieces: [], experts: [] };
      await api.chat(body, this.#abort.signal, (event) => {
        if (event.usage)
          Object.assign(message.stats, { tokens: event.usage.completion_tokens, prompt: event.usage.prompt_tokens });
        const choice = event.choices[0];
        if (!choice || choice.delta.role) return;
        const now = performance.now();
        first ??= now;
        const piece = choice.delta.content ?? "";
        message.text += piece;
        finish = choice.finish_reason ?? null;
        message.stats.tokens += 1;
        message.stats.first = (first - asked) / 1000;
        message.stats.seconds = (now - first) / 1000;
        const told = choice.x_mobilemoe?.routing ?? [];
        for (const layers of told) {
          message.routing?.pieces.push("");
          message.routing?.experts.push(layers.flat());
        }
        const pieces = message.routing?.pieces ?? [];
        if (pieces.length) pieces[pieces.length - 1] += piece;
        this.onChange();
      });
      message.finish = finish ?? "stop";
      return null;
    } catch (fault) {
      message.finish = fault.name === "AbortError" ? "stopped" : "failed";
      if (message.finish === "stopped") return null;
      message.error = fault.message;
      return fault;
    } finally {
      if (message.routing && !message.routing.experts.length) message.routing = null;
    }
  }
}
