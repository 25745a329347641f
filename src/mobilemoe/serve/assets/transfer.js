// Conversations as files: JSON, which can be read back, and Markdown, for people.

import { DEFAULTS, newConversation, NUMBERS, path } from "./conversation.js";
import { saveFile } from "./dom.js";

const KIND = "mobilemoe conversations";
const MOST_BYTES = 50 * 2 ** 20;
const MOST_TEXT = 200000; // characters of a message
const FINISHES = ["stop", "length", "stopped", "failed"];

class ImportFault extends Error {}

/** What is exported of conversations; the routing of their answers is not. */
function toJson(conversations) {
  const bare = conversations.map(({ messages, ...rest }) => ({
    ...rest,
    messages: messages.map(({ routing, ...message }) => message),
  }));
  return `${JSON.stringify({ kind: KIND, version: 1, conversations: bare }, null, 2)}\n`;
}

/** The path that is shown, as Markdown. */
function toMarkdown(conversation) {
  const parts = [`# ${conversation.title}`];
  if (conversation.settings.system.trim()) parts.push(`**System**\n\n${conversation.settings.system.trim()}`);
  for (const message of path(conversation)) {
    const text = message.format === "json" ? `\`\`\`json\n${message.text}\n\`\`\`` : message.text.trim();
    parts.push(`**${message.role === "user" ? "You" : "Assistant"}**\n\n${text}`);
  }
  return `${parts.join("\n\n")}\n`;
}

const fileName = (title, ending) =>
  `${
    title
      .replace(/[^\p{L}\p{N}]+/gu, "-")
      .replace(/^-|-$/g, "")
      .slice(0, 60) || "conversation"
  }.${ending}`;

export const saveAsMarkdown = (conversation) =>
  saveFile(fileName(conversation.title, "md"), "text/markdown", toMarkdown(conversation));

export const saveAsJson = (conversations, title) =>
  saveFile(fileName(title, "json"), "application/json", toJson(conversations));

/** Puts a file's conversations beside those in the store: what to say of it, and the id of the first. */
export async function importInto(store, file) {
  try {
    const found = fromJson(await file.text());
    const there = new Set((await store.all()).map((each) => each.id));
    for (const each of found) {
      if (there.has(each.id)) each.id = newConversation(DEFAULTS).id;
      await store.put(each);
    }
    const said = `${found.length} conversation${found.length === 1 ? " was" : "s were"} imported.`;
    return { said, first: found[0]?.id ?? null };
  } catch (fault) {
    const why = fault instanceof ImportFault ? fault.message : `${fault.name}: ${fault.message}`;
    return { said: `Nothing was imported. ${why}`, first: null };
  }
}

/** The conversations in a file's text, made of known fields of known types only. ImportFault says what is wrong. */
function fromJson(text) {
  if (text.length > MOST_BYTES) throw new ImportFault("The file is larger than 50 MB.");
  let value;
  try {
    value = JSON.parse(text);
  } catch {
    throw new ImportFault("The file is not JSON.");
  }
  if (value?.kind !== KIND || !Array.isArray(value.conversations))
    throw new ImportFault("The file holds no exported conversations.");
  if (value.version !== 1) throw new ImportFault("The file is of another version of this page.");
  return value.conversations.map((each, place) => conversationOf(each, `Conversation ${place + 1}`));
}

function conversationOf(value, where) {
  const check = (holds, what) => {
    if (!holds) throw new ImportFault(`${where} ${what}.`);
  };
  check(value && typeof value === "object" && Array.isArray(value.messages), "has no messages");
  check(value.messages.length <= 10000, "has more than 10,000 messages");
  check(isId(value.id), "has no id");
  const known = new Set([null]);
  const messages = value.messages.map((message, place) => {
    const made = messageOf(message);
    check(made && known.has(made.parent), `has a damaged message ${place + 1}`);
    known.add(made.id);
    return made;
  });
  check(known.size === messages.length + 1, "has two messages of one id");
  check(known.has(value.head ?? null), "shows a message that it does not have");
  const updated = time(value.updated);
  const title = typeof value.title === "string" ? value.title.slice(0, 200) : "Imported conversation";
  const settings = settingsOf(value.settings);
  return {
    id: value.id,
    title,
    named: true,
    created: time(value.created),
    updated,
    settings,
    head: value.head ?? null,
    messages,
  };
}

const isId = (value) => typeof value === "string" && value.length > 0 && value.length <= 100;
const time = (value) => (Number.isFinite(value) && value > 0 && value < 8.64e15 ? value : Date.now());
const count = (value) => (Number.isFinite(value) && value >= 0 ? value : 0);

function messageOf(value) {
  const { id, parent = null, role, text } = value ?? {};
  if (!isId(id) || !(parent === null || isId(parent)) || !["user", "assistant"].includes(role)) return null;
  if (typeof text !== "string" || text.length > MOST_TEXT) return null;
  const message = { id, parent, role, text, created: time(value.created) };
  if (role === "user") return message;
  const stats = value.stats && {
    tokens: count(value.stats.tokens),
    prompt: count(value.stats.prompt),
    first: count(value.stats.first),
    seconds: count(value.stats.seconds),
  };
  return {
    ...message,
    finish: FINISHES.includes(value.finish) ? value.finish : "stopped",
    error: typeof value.error === "string" ? value.error.slice(0, 1000) : null,
    format: value.format === "json" ? "json" : "text",
    stats: stats ?? null,
    routing: null,
  };
}

/** The settings in `value` that are of the right kind and in range, and the defaults for all others. */
export function settingsOf(value) {
  const settings = { ...DEFAULTS };
  for (const [name, , lowest, highest, step] of NUMBERS) {
    const given = value?.[name];
    if (Number.isFinite(given) && given >= lowest && given <= highest && (step < 1 || Number.isInteger(given)))
      settings[name] = given;
  }
  for (const name of ["system", "schema"])
    if (typeof value?.[name] === "string") settings[name] = value[name].slice(0, MOST_TEXT);
  if (["text", "json", "schema"].includes(value?.format)) settings.format = value.format;
  return settings;
}
