// Markdown within a block: emphasis, code, links. `inline(text)` gives nodes of the document.

import { make } from "./dom.js";

const PUNCTUATION = /[\p{P}\p{S}]/u;
const SPACE = /\s/;
const DEEPEST = 12; // emphasis within emphasis; what is deeper stays text
const LONGEST = 20000; // characters; a longer block is shown as it is
const TAGS = { strong: "strong", em: "em", del: "del" };
const WORD = /[\p{L}\p{N}]/u;
const BARE = /https?:\/\/[^\s<>"'`]{1,2000}/y;

/** The address if it is one to follow: of the web, or of mail; else null. */
export function safeAddress(text) {
  try {
    const url = new URL(text.trim());
    return ["http:", "https:", "mailto:"].includes(url.protocol) ? url.href : null;
  } catch {
    return null; // relative or none
  }
}

export function inline(text) {
  if (text.length > LONGEST) return [text];
  return tree(scan(text)).map(toNode);
}

function scan(text) {
  const items = [];
  const brackets = [];
  const unclosed = new Set(); // lengths of runs of backticks that nothing closes
  let plain = "";
  const flush = () => {
    if (plain) items.push(plain);
    plain = "";
  };
  for (let at = 0; at < text.length;) {
    const mark = text[at];
    if (mark === "\\" && at + 1 < text.length && PUNCTUATION.test(text[at + 1])) {
      plain += text[at + 1];
      at += 2;
    } else if (mark === "`") {
      const run = runLength(text, at);
      const end = unclosed.has(run) ? -1 : closingTicks(text, at + run, run);
      if (end < 0) {
        unclosed.add(run);
        plain += "`".repeat(run);
        at += run;
      } else {
        flush();
        const code = text.slice(at + run, end).replaceAll("\n", " ");
        const padded = code.length > 2 && code.startsWith(" ") && code.endsWith(" ") && code.trim();
        items.push({ tag: "code", children: [padded ? code.slice(1, -1) : code], depth: 0 });
        at = end + run;
      }
    } else if (mark === "*" || mark === "_" || (mark === "~" && text[at + 1] === "~")) {
      flush();
      const run = runLength(text, at);
      items.push(delimiter(text, at, run));
      at += run;
    } else if (mark === "[" || (mark === "!" && text[at + 1] === "[")) {
      flush();
      const opening = mark === "!" ? "![" : "[";
      brackets.push({ place: items.length, image: mark === "!" });
      items.push(opening);
      at += opening.length;
    } else if (mark === "]" && brackets.length) {
      flush();
      at = closeBracket(text, at, items, brackets.pop());
    } else if (mark === "<" && /^<(https?:[^\s<>]*|mailto:[^\s<>]*)>/i.test(text.slice(at, at + 2000))) {
      flush();
      const end = text.indexOf(">", at);
      items.push(link(text.slice(at + 1, end), [text.slice(at + 1, end)]));
      at = end + 1;
    } else if (mark === "h" && !WORD.test(plain.at(-1) ?? "") && bareAddress(text, at)) {
      const address = bareAddress(text, at);
      flush();
      items.push(link(address, [address]));
      at += address.length;
    } else if (mark === "\n") {
      plain = plain.trimEnd();
      flush();
      items.push({ tag: "br", children: [], depth: 0 });
      at += 1;
    } else {
      plain += mark;
      at += 1;
    }
  }
  flush();
  return items;
}

function runLength(text, at) {
  let end = at + 1;
  while (text[end] === text[at]) end += 1;
  return end - at;
}

function closingTicks(text, from, run) {
  for (let at = text.indexOf("`", from); at >= 0;) {
    const found = runLength(text, at);
    if (found === run) return at;
    at = text.indexOf("`", at + found);
  }
  return -1;
}

/** Whether a run may open or close emphasis, by the rules of CommonMark for what stands on either side of it. */
function delimiter(text, at, run) {
  const before = at ? text[at - 1] : " ";
  const after = text[at + run] ?? " ";
  const left = !SPACE.test(after) && (!PUNCTUATION.test(after) || SPACE.test(before) || PUNCTUATION.test(before));
  const right = !SPACE.test(before) && (!PUNCTUATION.test(before) || SPACE.test(after) || PUNCTUATION.test(after));
  const mark = text[at];
  const inWord = mark === "_";
  return {
    mark,
    left: run,
    opens: left && (!inWord || !right || PUNCTUATION.test(before)),
    closes: right && (!inWord || !left || PUNCTUATION.test(after)),
  };
}

/** The address that begins here. Punctuation behind it belongs to the sentence, and a bracket that it did not open. */
function bareAddress(text, at) {
  BARE.lastIndex = at;
  const address = BARE.exec(text)?.[0] ?? "";
  let end = address.length;
  while (end > 0) {
    const last = address[end - 1];
    const opened = last === ")" && address.slice(0, end).split("(").length >= address.slice(0, end).split(")").length;
    if (opened || !/[.,:;!?*_~)\]]/.test(last)) break;
    end -= 1;
  }
  return address.slice(0, end);
}

function closeBracket(text, at, items, opening) {
  const target = /^\]\(\s*(<[^<>\n]*>|[^\s()<>]*(?:\([^\s()<>]*\)[^\s()<>]*)*)(?:\s+(?:"[^"\n]*"|'[^'\n]*'))?\s*\)/;
  const found = target.exec(text.slice(at, at + 2000));
  if (!found) {
    items.push("]");
    return at + 1;
  }
  const [first, ...label] = items.splice(opening.place);
  const address = found[1].replace(/^<|>$/g, "");
  const shown = tree(label);
  if (opening.image) shown.unshift("Picture: "); // it is not loaded: that would be a request to somebody else
  items.push(shown.length ? link(address, shown) : first + text.slice(at, at + found[0].length));
  return at + found[0].length;
}

function link(address, children) {
  const safe = safeAddress(address);
  if (!safe) return { tag: "span", children, depth: depthOf(children) };
  return { tag: "a", address: safe, children: children.map(withoutLinks), depth: depthOf(children) };
}

/** A link holds no other link. */
function withoutLinks(item) {
  if (typeof item === "string") return item;
  return { ...item, tag: item.tag === "a" ? "span" : item.tag, children: item.children.map(withoutLinks) };
}

const depthOf = (children) => 1 + Math.max(-1, ...children.map((item) => item.depth ?? -1));

/** Pairs the delimiters; what finds no partner becomes text. */
function tree(items) {
  const done = [];
  for (const item of items) {
    if (item.mark && item.closes) pair(done, item);
    if (!item.mark || item.left) done.push(item);
  }
  return done.map((item) => (item.mark ? item.mark.repeat(item.left) : item));
}

function pair(done, closer) {
  for (let place = done.length - 1; place >= 0 && closer.left; place -= 1) {
    const opener = done[place];
    if (opener.mark !== closer.mark || !opener.opens || !opener.left) continue;
    const width = closer.mark === "~" ? 2 : Math.min(2, opener.left, closer.left);
    if (opener.left < width || closer.left < width) continue;
    const children = done.slice(place + 1).map((item) => (item.mark ? item.mark.repeat(item.left) : item));
    if (!children.length || depthOf(children) > DEEPEST) continue;
    const tag = closer.mark === "~" ? TAGS.del : width === 2 ? TAGS.strong : TAGS.em;
    opener.left -= width;
    closer.left -= width;
    done.length = opener.left ? place + 1 : place;
    done.push({ tag, children, depth: depthOf(children) });
    place = opener.left ? place + 1 : place; // the same opener may pair again
  }
}

function toNode(item) {
  if (typeof item === "string") return document.createTextNode(item);
  const props = item.tag === "a" ? { href: item.address, target: "_blank", rel: "noopener noreferrer nofollow" } : {};
  return make(item.tag, props, ...item.children.map(toNode));
}
