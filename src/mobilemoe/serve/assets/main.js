// The page as a whole: what is open, what is being written, and what each control does.

import { Announcer } from "./announcer.js";
import * as api from "./api.js";
import { addMessage, DEFAULTS, newConversation, path, schemaFault, showVersion } from "./conversation.js";
import { ask } from "./dialogs.js";
import { byId, icon, make } from "./dom.js";
import { Drawers } from "./drawers.js";
import { recall, remember } from "./memory.js";
import { RoutingView } from "./routing.js";
import { Settings } from "./settings.js";
import { listen } from "./shortcuts.js";
import { Sidebar } from "./sidebar.js";
import { Status } from "./status.js";
import { Store } from "./store.js";
import { Thread } from "./thread.js";
import { importInto, saveAsJson, saveAsMarkdown, settingsOf } from "./transfer.js";
import { Writing } from "./writing.js";

const EXAMPLES = [
  "What is a mixture of experts?",
  "What is 58 minus 23?",
  "Write a Python function that adds two numbers.",
  "Tell me a short story about a fox.",
];
const SAVE_EVERY = 2000; // milliseconds, while an answer is written

let conversation; // the one that is shown; it is stored with its first message
let writing = null; // the answer in progress, in whichever conversation
let drawing = false;
let savedAt = 0;

for (const button of document.querySelectorAll("[data-icon]")) button.prepend(icon(button.dataset.icon));

const store = await Store.open(onNews);
const announcer = new Announcer(byId("live"));
const routing = new RoutingView();
const status = new Status();
const thread = new Thread(byId("thread"), { regenerate, resend, show: otherVersion });
const sidebar = new Sidebar({ open: openConversation, rename, exportMarkdown, exportJson, remove });
const settings = new Settings(() => {
  remember("settings", conversation.settings);
  if (conversation.messages.length) save();
});
const drawers = new Drawers((id, isOpen) => {
  if (id === "routing" && isOpen) showRouting();
});

// What is shown

function showAll() {
  const messages = path(conversation);
  byId("title").textContent = conversation.title;
  document.title = messages.length ? `${conversation.title} – mobilemoe` : "mobilemoe";
  byId("welcome").hidden = messages.length > 0;
  byId("actions").hidden = !messages.length;
  thread.show(conversation, messages);
  settings.show(conversation.settings);
  status.conversation(messages);
  showRouting();
  showControls();
  showList();
}

function showRouting() {
  if (drawers.isOpen("routing")) routing.show(path(conversation), Boolean(status.shape?.experts));
}

function showControls() {
  const mine = writing?.conversation.id === conversation.id;
  byId("stop").hidden = !mine;
  byId("send").hidden = mine;
  byId("send").disabled = Boolean(writing) || !status.model || !byId("prompt").value.trim();
}

async function showList() {
  sidebar.show(await store.all(), conversation?.id, writing?.conversation.id);
}

function notice(text) {
  byId("notice").textContent = text;
  byId("notice").hidden = !text;
}

const scroll = byId("scroll");
const atEnd = () => scroll.scrollHeight - scroll.scrollTop - scroll.clientHeight < 60;
const toEnd = () => scroll.scrollTo({ top: scroll.scrollHeight });
let follows = true; // the end stays in sight, as long as the user does not scroll away from it
let top = 0;

function scrolled() {
  if (atEnd()) follows = true;
  else if (scroll.scrollTop < top) follows = false; // otherwise the text has grown since
  top = scroll.scrollTop;
  byId("latest").hidden = follows || !conversation?.messages.length;
}

const resized = new ResizeObserver(() => follows && toEnd());

// Keeping

async function save(each = conversation) {
  savedAt = Date.now();
  try {
    await store.put(structuredClone(each));
  } catch (fault) {
    notice(`This conversation could not be kept: ${fault.message}`);
  }
}

async function onNews(id) {
  const now = await store.get(id); // meanwhile the user may write, or go elsewhere
  if (writing?.conversation.id === id) return; // it is newer here
  if (id !== conversation?.id) return showList();
  if (!now) return begin();
  conversation = now;
  showAll();
}

// Writing

/** Whether an answer can be written now; where the schema is at fault, it is shown. */
function canWrite() {
  if (writing || !status.model) return false;
  if (conversation.settings.format !== "schema" || !schemaFault(conversation.settings.schema)) return true;
  drawers.open("settings");
  byId("set-schema").focus();
  return false;
}

async function write(parent) {
  const here = conversation;
  const answer = addMessage(here, parent, "assistant", "", { finish: null, error: null });
  const shape = status.shape;
  const told = routing.isWanted() && shape?.experts;
  const kind = told ? { layers: shape.layers, width: shape.experts, active: shape.experts_per_token } : null;
  writing = new Writing(here, answer, () => changed(here, answer));
  announcer.begin();
  history.replaceState(null, "", addressOf(here.id));
  showAll();
  toEnd();
  save(here);
  const fault = await writing.run(status.model, kind);
  writing = null;
  if (here === conversation) draw(answer);
  showControls();
  announcer.grow(answer.text, true);
  announcer.say(
    fault ? `The answer failed. ${fault.message}` : answer.finish === "stopped" ? "Stopped." : "End of the answer.",
  );
  await save(here);
  showList();
  status.memory();
  if (fault?.status === 401) await askKey();
}

function draw(answer) {
  thread.update(answer);
  status.conversation(path(conversation));
  showRouting();
}

/** Shows a growing answer, once a frame. */
function changed(here, answer) {
  if (Date.now() - savedAt > SAVE_EVERY) save(here);
  if (drawing || here !== conversation) return;
  drawing = true;
  requestAnimationFrame(() => {
    drawing = false;
    if (here !== conversation || answer.finish !== null) return;
    draw(answer);
    announcer.grow(answer.text, false);
  });
}

function send(text) {
  if (!text.trim() || !canWrite()) return;
  addMessage(conversation, conversation.head, "user", text.trim());
  byId("prompt").value = "";
  fit();
  write(conversation.head);
}

function regenerate(message) {
  if (canWrite()) write(message.parent);
}

function resend(message, text) {
  if (!canWrite()) return;
  addMessage(conversation, message.parent, "user", text.trim());
  write(conversation.head);
  byId("prompt").focus();
}

function otherVersion(message) {
  if (writing?.conversation === conversation) return;
  showVersion(conversation, message);
  save();
  showAll();
}

// Conversations

const addressOf = (id) => `#${encodeURIComponent(id)}`;

function begin() {
  conversation = newConversation(settingsOf(recall("settings", DEFAULTS)));
  history.replaceState(null, "", location.pathname);
  showAll();
  drawers.uncover();
  byId("prompt").focus();
}

async function openConversation(id) {
  const found = writing?.conversation.id === id ? writing.conversation : await store.get(id);
  if (!found) return begin();
  if (found !== writing?.conversation) {
    const unfinished = found.messages.filter((message) => message.finish === null);
    for (const message of unfinished) message.finish = "stopped"; // the page was closed meanwhile
  }
  conversation = found;
  history.replaceState(null, "", addressOf(id));
  showAll();
  drawers.uncover();
  toEnd();
}

const byIdOrOpen = async (id) => (id === conversation.id ? conversation : await store.get(id));

async function rename(id) {
  const each = await byIdOrOpen(id);
  const check = (text) => (text.trim() ? null : "A conversation needs a name.");
  const title = await ask({ title: "Rename the conversation", label: "Name", value: each.title, go: "Rename", check });
  if (title === null) return;
  each.title = title.trim().slice(0, 200);
  each.named = true;
  await save(each);
  if (id === conversation.id) showAll();
  else showList();
}

async function remove(id) {
  const each = await byIdOrOpen(id);
  const text = `“${each.title}” will be gone from this browser.`;
  if ((await ask({ title: "Delete the conversation?", text, go: "Delete", danger: true })) === null) return;
  if (writing?.conversation.id === id) writing.stop();
  while (writing?.conversation.id === id) await new Promise((resolve) => setTimeout(resolve, 20));
  await store.remove(id);
  if (id === conversation.id) begin();
  else showList();
}

async function exportMarkdown(id) {
  saveAsMarkdown(await byIdOrOpen(id));
}

async function exportJson(id) {
  const each = await byIdOrOpen(id);
  saveAsJson([each], each.title);
}

async function importFile(file) {
  const { said, first } = await importInto(store, file);
  notice(said);
  if (first) await openConversation(first);
}

// The server

let asking = false;

async function askKey() {
  if (asking) return;
  asking = true;
  const check = async (key) => {
    api.setKey(key);
    try {
      await status.learn();
      return null;
    } catch (fault) {
      return fault.message;
    }
  };
  const text = "This server answers to those who have its key. The key stays in this tab until you close it.";
  const entered = await ask({ title: "API key", text, label: "Key", go: "Continue", secret: true, check });
  asking = false;
  notice(entered === null ? "Without the key the server does not answer. Load the page again to enter it." : "");
  showAll();
}

async function watch() {
  const fault = await status.look();
  if (fault?.status === 401 && byId("notice").hidden) await askKey();
  else if (status.isNew) showAll();
  setTimeout(watch, status.ready ? 10000 : 1000);
}

// Controls

const prompt = byId("prompt");

function fit() {
  prompt.style.setProperty("height", "auto");
  prompt.style.setProperty("height", `${Math.min(prompt.scrollHeight, window.innerHeight * 0.4)}px`);
  showControls();
}

prompt.addEventListener("input", fit);
prompt.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  send(prompt.value);
});
byId("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  send(prompt.value);
});
byId("stop").addEventListener("click", () => {
  writing?.stop();
  prompt.focus();
});
byId("new").addEventListener("click", begin);
byId("actions").addEventListener("click", () => sidebar.menu(conversation.id, byId("actions")));
byId("latest").addEventListener("click", toEnd);
scroll.addEventListener("scroll", scrolled, { passive: true });
for (const each of [scroll, byId("thread")]) resized.observe(each);
byId("help").addEventListener("click", () => byId("shortcuts").showModal());
byId("export-all").addEventListener("click", async () => saveAsJson(await store.all(), "conversations"));
byId("import").addEventListener("click", () => byId("import-file").click());
byId("import-file").addEventListener("change", async (event) => {
  const [file] = event.target.files;
  if (file) await importFile(file);
  event.target.value = "";
});
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || event.defaultPrevented || document.querySelector("dialog[open], :popover-open")) return;
  if (writing?.conversation === conversation) writing.stop();
  else if (event.target === prompt) scroll.focus();
});
/** Who leaves the page stops the answer: the connection breaks off then, which would count as a failure. */
function leave() {
  if (!writing) return;
  save(writing.conversation);
  writing.stop();
}

for (const event of ["beforeunload", "pagehide"]) addEventListener(event, leave); // not every browser has the first

const theme = byId("theme");
theme.querySelector(`[value="${CSS.escape(recall("theme", "system"))}"]`)?.click();
theme.addEventListener("change", (event) => {
  remember("theme", event.target.value);
  if (event.target.value === "system") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = event.target.value;
  routing.draw();
});

const last = (role) => path(conversation).findLast((message) => message.role === role);
listen([
  ["/", "Write a message", () => prompt.focus()],
  ["n", "Begin a new conversation", begin],
  ["c", "Show the conversations", () => drawers.toggle("sidebar")],
  ["s", "Show the settings", () => drawers.toggle("settings")],
  ["x", "Show the routing of experts", () => drawers.toggle("routing")],
  ["j", "Go to the next message", () => thread.step(1)],
  ["k", "Go to the message before", () => thread.step(-1)],
  ["e", "Edit your last message", () => last("user") && !writing && thread.edit(last("user"))],
  ["r", "Write the last answer again", () => last("assistant") && regenerate(last("assistant"))],
  ["?", "Show this list", () => byId("shortcuts").showModal()],
]);
for (const text of EXAMPLES)
  byId("examples").append(make("li", {}, make("button", { type: "button", on: { click: () => send(text) } }, text)));

if (!store.lasting) notice("This browser keeps nothing for this page: the conversations are gone when you close it.");
const wanted = location.hash && (await store.all()).find((each) => addressOf(each.id) === location.hash);
if (wanted) await openConversation(wanted.id);
else begin();
watch();
