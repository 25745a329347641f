// What a conversation is: messages that form a tree, of which one path is shown. No page, no storage.
//
// { id, title, named, created, updated, settings, head, messages: [{ id, parent, role, text, created, ... }] }
// An answer also has: finish (null while it is written; stop, length, stopped, failed), error, format (text, json),
// stats { tokens, prompt, first, seconds } and
// routing { layers, width, active, pieces: [text], experts: [[id, ...]] }: a layer has `width` experts, a token uses
// `active` of them, and the lists of all layers stand behind each other.

export const DEFAULTS = Object.freeze({
  system: "",
  temperature: 0.7,
  top_p: 1,
  max_tokens: null,
  top_k: 0,
  min_p: 0,
  repetition_penalty: 1,
  presence_penalty: 0,
  frequency_penalty: 0,
  seed: null,
  format: "text",
  schema: "",
});

/** The numbers among the settings: [name, label, lowest, highest, step, hint]. */
export const NUMBERS = [
  ["temperature", "Temperature", 0, 2, 0.1, "0 always takes the likeliest token"],
  ["top_p", "Top p", 0.01, 1, 0.01, "Sample from the likeliest tokens that together have this probability"],
  ["max_tokens", "Longest answer", 1, 1000000, 1, "In tokens; empty: what the context takes"],
  ["top_k", "Top k", 0, 1000000, 1, "Sample from so many tokens; 0: from all"],
  ["min_p", "Min p", 0, 1, 0.01, "Drop tokens below this share of the likeliest one's probability"],
  ["repetition_penalty", "Repetition penalty", 0.1, 10, 0.05, "Above 1 repeats less; 1: off"],
  ["presence_penalty", "Presence penalty", -2, 2, 0.1, "Against tokens that the answer has already"],
  ["frequency_penalty", "Frequency penalty", -2, 2, 0.1, "The same, for each time that it has them"],
  ["seed", "Seed", 0, Number.MAX_SAFE_INTEGER, 1, "The same number gives the same answer; empty: chance"],
];

const newId = () => crypto.getRandomValues(new Uint32Array(4)).reduce((text, part) => text + part.toString(36), "");

export function newConversation(settings) {
  const now = Date.now();
  const copy = { ...settings };
  return {
    id: newId(),
    title: "New conversation",
    named: false,
    created: now,
    updated: now,
    settings: copy,
    head: null,
    messages: [],
  };
}

/** Adds a message behind `parent` (null: the first) and shows it. */
export function addMessage(conversation, parent, role, text, more = {}) {
  const message = { id: newId(), parent, role, text, created: Date.now(), ...more };
  conversation.messages.push(message);
  conversation.head = message.id;
  conversation.updated = message.created;
  if (!conversation.named && parent === null && role === "user") conversation.title = titleOf(text);
  return message;
}

export function titleOf(text) {
  const line = text.trim().split("\n")[0].slice(0, 80).trim();
  return line || "New conversation";
}

export const find = (conversation, id) => conversation.messages.find((message) => message.id === id) ?? null;

/** The messages that are shown, first to last. */
export function path(conversation) {
  const byId = new Map(conversation.messages.map((message) => [message.id, message]));
  const found = [];
  for (let at = byId.get(conversation.head); at; at = byId.get(at.parent)) found.push(at);
  return found.reverse();
}

/** The versions of a message: all that follow the same one, oldest first. */
export const versions = (conversation, message) =>
  conversation.messages.filter((other) => other.parent === message.parent && other.role === message.role);

/** Shows another version of a message, with what last followed it. */
export function showVersion(conversation, message) {
  let last = message;
  // One pass finds the end: a message stands behind its parent.
  for (const other of conversation.messages) if (other.parent === last.id) last = other;
  conversation.head = last.id;
}

/** What a chat request holds for the answer behind `parent`. */
export function requestFor(conversation, parent, model, withRouting) {
  const { system, format, schema, ...numbers } = conversation.settings;
  const messages = [];
  for (let at = find(conversation, parent); at; at = find(conversation, at.parent))
    messages.unshift({ role: at.role, content: at.text });
  if (system.trim()) messages.unshift({ role: "system", content: system });
  const body = { model, messages, stream: true, stream_options: { include_usage: true } };
  for (const [name, value] of Object.entries(numbers)) {
    const always = name === "temperature" || name === "top_p";
    if (value !== null && (always || value !== DEFAULTS[name])) body[name] = value;
  }
  if (format === "json") body.response_format = { type: "json_object" };
  if (format === "schema") {
    const json_schema = { name: "answer", strict: true, schema: JSON.parse(schema) };
    body.response_format = { type: "json_schema", json_schema };
  }
  if (withRouting) body.x_mobilemoe = { routing: true };
  return body;
}

/** Why a text is no schema to ask for, or null. */
export function schemaFault(text) {
  try {
    const value = JSON.parse(text);
    return value && typeof value === "object" && !Array.isArray(value) ? null : "A schema is a JSON object.";
  } catch (fault) {
    return text.trim() ? `This is not JSON: ${fault.message}` : "Write a schema, or choose another kind of answer.";
  }
}
