// Markdown as the nodes of a document, made anew only where the text has changed since the last call.

import { copyText, iconButton, make } from "./dom.js";
import { highlighted } from "./highlight.js";
import { inline } from "./inline.js";

const DEEPEST = 8; // lists and quotes within each other; what is deeper stays text
const FENCE = /^ {0,3}(`{3,}|~{3,})[ \t]*([^`]*)$/;
const HEADING = /^ {0,3}(#{1,6})(?:[ \t]+(.*))?$/;
const RULE = /^ {0,3}([-*_])(?:[ \t]*\1){2,}[ \t]*$/;
const QUOTE = /^ {0,3}> ?/;
const ITEM = /^( {0,3})([-*+]|\d{1,9}[.)])(?:( {1,4})(?=\S)|[ \t]*$| +)/;
const TASK = /^\[([ xX])\] /;
const DASHES = /^:?-+:?$/;

const shown = new WeakMap(); // of a container: the blocks in it, [{ source, node }]

/** Makes `container` show `text`. While a text grows, the nodes of its finished blocks stay as they are. */
export function showMarkdown(container, text) {
  const before = shown.get(container) ?? [];
  const blocks = split(text.replaceAll("\r\n", "\n").replaceAll("\t", "    ").split("\n"), 0);
  let same = 0;
  while (same < before.length && same < blocks.length && before[same].source === blocks[same].source) same += 1;
  for (const old of before.slice(same)) old.node.remove();
  const now = before.slice(0, same);
  for (const { source, build } of blocks.slice(same)) {
    const node = build();
    container.append(node);
    now.push({ source, node });
  }
  shown.set(container, now);
}

/** A block of code that can be copied. */
export function codeBlock(code, language) {
  const name = language ? `Code, ${language}` : "Code";
  const copy = iconButton("copy", "Copy the code", () => copyText(code, copy));
  return make(
    "figure",
    { class: "code" },
    make("figcaption", {}, make("span", {}, language || "text"), copy),
    make(
      "pre",
      { tabIndex: 0, attrs: { role: "region", "aria-label": name } },
      make("code", {}, ...highlighted(code, language)),
    ),
  );
}

/** The blocks of `lines`, each with its source and a function that builds its node. */
function split(lines, depth) {
  const blocks = [];
  for (let at = 0; at < lines.length;) {
    if (!lines[at].trim()) {
      at += 1;
      continue;
    }
    const [end, build] = blockAt(lines, at, depth);
    blocks.push({ source: lines.slice(at, end).join("\n"), build });
    at = end;
  }
  return blocks;
}

const built = (lines, depth) => split(lines, depth).map((block) => block.build());

function blockAt(lines, at, depth) {
  const line = lines[at];
  const fence = FENCE.exec(line);
  if (fence) return fenced(lines, at, fence);
  const heading = HEADING.exec(line);
  if (heading) {
    const level = Math.min(6, heading[1].length + 2); // the page's own headings are h1 and h2
    const text = (heading[2] ?? "").trim().replace(/(^|\s)#+$/, "");
    return [at + 1, () => make(`h${level}`, {}, ...inline(text))];
  }
  if (RULE.test(line)) return [at + 1, () => make("hr")];
  if (depth < DEEPEST && QUOTE.test(line)) {
    const end = after(lines, at, (each) => QUOTE.test(each));
    const inner = lines.slice(at, end).map((each) => each.replace(QUOTE, ""));
    return [end, () => make("blockquote", {}, ...built(inner, depth + 1))];
  }
  if (depth < DEEPEST && ITEM.test(line)) return list(lines, at, depth);
  const columns = tableAt(lines, at);
  if (columns) return table(lines, at, columns);
  const end = after(lines, at + 1, (each, place) => each.trim() && !startsBlock(lines, place, depth));
  const text = lines
    .slice(at, end)
    .map((each) => each.trimStart())
    .join("\n")
    .trimEnd();
  return [end, () => make("p", {}, ...inline(text))];
}

function after(lines, at, belongs) {
  let end = at;
  while (end < lines.length && belongs(lines[end], end)) end += 1;
  return end;
}

function startsBlock(lines, at, depth) {
  const line = lines[at];
  if (FENCE.test(line) || HEADING.test(line) || RULE.test(line)) return true;
  return depth < DEEPEST && (QUOTE.test(line) || ITEM.test(line));
}

function fenced(lines, at, [, fence, info]) {
  const closes = (line) => {
    const text = line.trim();
    return text.length >= fence.length && text === fence[0].repeat(text.length);
  };
  const end = after(lines, at + 1, (line) => !closes(line));
  const indent = lines[at].length - lines[at].trimStart().length;
  const code = lines.slice(at + 1, end).map((line) => line.replace(new RegExp(`^ {0,${indent}}`), ""));
  const language = info.trim().split(/\s+/)[0].slice(0, 30);
  return [Math.min(lines.length, end + 1), () => codeBlock(code.join("\n"), language)];
}

function list(lines, at, depth) {
  const ordered = /\d/.test(ITEM.exec(lines[at])[2]);
  const kind = (line) => {
    const found = ITEM.exec(line);
    return found && !RULE.test(line) && /\d/.test(found[2]) === ordered ? found : null;
  };
  const items = [];
  let loose = false;
  let place = at;
  while (place < lines.length) {
    const found = kind(lines[place]);
    if (!found) break;
    const indent = found[1].length + found[2].length + (found[3] ?? " ").length;
    const mine = [lines[place].slice(indent)];
    place += 1;
    for (; place < lines.length; place += 1) {
      const line = lines[place];
      const inside = line.startsWith(" ".repeat(Math.min(indent, 2 + found[1].length))) && line.trim();
      const goesOn = lines[place - 1].trim() && line.trim() && !startsBlock(lines, place, depth);
      if (!line.trim()) {
        const next = after(lines, place, (each) => !each.trim());
        if (next === lines.length || !(lines[next].startsWith("  ") || kind(lines[next]))) break;
        loose ||= mine.filter((each) => FENCE.test(each)).length % 2 === 0; // not for a blank line within code
        mine.push(...Array(next - place).fill(""));
        place = next - 1;
      } else if (inside || goesOn) mine.push(line.slice(Math.min(indent, line.length - line.trimStart().length)));
      else break;
    }
    items.push(mine);
  }
  const first = ordered ? Number.parseInt(ITEM.exec(lines[at])[2], 10) : 1;
  const build = () =>
    make(ordered ? "ol" : "ul", ordered ? { start: first } : {}, ...items.map((each) => item(each, loose, depth)));
  return [place, build];
}

function item(lines, loose, depth) {
  const task = TASK.exec(lines[0]);
  const nodes = built(task ? [lines[0].slice(4), ...lines.slice(1)] : lines, depth + 1);
  const flat = loose ? nodes : nodes.flatMap((node) => (node.tagName === "P" ? [...node.childNodes] : [node]));
  if (task) {
    const done = task[1] !== " ";
    flat.unshift(
      make("input", {
        type: "checkbox",
        disabled: true,
        checked: done,
        attrs: { "aria-label": done ? "done" : "to do" },
      }),
      " ",
    );
  }
  return make("li", task ? { class: "task" } : {}, ...flat);
}

/** The cells of a row; a bar behind a backslash belongs to its cell. */
function cells(line) {
  const text = line
    .trim()
    .replace(/^\|/, "")
    .replace(/(?<!\\)\|$/, "");
  return text.split(/(?<!\\)\|/).map((cell) => cell.trim().replaceAll("\\|", "|"));
}

function tableAt(lines, at) {
  if (!lines[at].includes("|") || at + 1 >= lines.length || !lines[at + 1].includes("-")) return null;
  const rule = cells(lines[at + 1]);
  return rule.every((cell) => DASHES.test(cell)) && rule.length === cells(lines[at]).length ? rule : null;
}

function table(lines, at, rule) {
  const align = rule.map((cell) => (cell.endsWith(":") ? (cell.startsWith(":") ? "center" : "to-end") : "start"));
  const end = after(lines, at + 2, (line) => line.trim() && line.includes("|"));
  const row = (line, tag) => {
    const found = cells(line);
    return make("tr", {}, ...align.map((side, place) => make(tag, { class: side }, ...inline(found[place] ?? ""))));
  };
  const build = () =>
    make(
      "div",
      { class: "scroll", tabIndex: 0, attrs: { role: "region", "aria-label": "Table" } },
      make(
        "table",
        {},
        make("thead", {}, row(lines[at], "th")),
        make("tbody", {}, ...lines.slice(at + 2, end).map((line) => row(line, "td"))),
      ),
    );
  return [end, build];
}
