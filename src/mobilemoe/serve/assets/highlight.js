// Colours for code, without knowing its language well: comments, strings, numbers and common keywords.

import { make } from "./dom.js";

const LONGEST = 20000; // characters; longer code is shown plain
const HASH = new Set([
  "python",
  "py",
  "bash",
  "sh",
  "shell",
  "yaml",
  "yml",
  "toml",
  "ruby",
  "rb",
  "r",
  "dockerfile",
  "make",
  "ini",
]);
const DASHES = new Set(["sql", "lua", "haskell", "hs"]);
const PLAIN = new Set(["", "text", "txt", "plain", "output", "console", "markdown", "md"]);
const WORDS = new Set(
  `
  and as async await break case catch class const continue def default del do elif else enum except export
  extends false False final finally fn for from func function global if impl import in interface is lambda let
  match mod mut new nil None nonlocal not null or package pass pub public private protected raise return self
  static struct super switch this throw true True try type typeof union unsafe use using var void where while
  with yield SELECT FROM WHERE INSERT UPDATE DELETE CREATE TABLE INTO VALUES JOIN ON GROUP ORDER BY LIMIT AND
  OR NOT NULL AS echo then fi done esac
  `.split(/\s+/),
);
const STRING = /"""[^]*?(?:"""|$)|"(?:[^"\\\n]|\\.)*"?|'(?:[^'\\\n]|\\.)*'?|`(?:[^`\\]|\\.)*`?/y;
const NUMBER = /\b\d[\w.]*/y;
const WORD = /[\p{L}_$][\p{L}\p{N}_$]*/uy;
const SLASHES = /\/\/[^\n]*|\/\*[^]*?(?:\*\/|$)/y;

/** The nodes of a piece of code in `language`. */
export function highlighted(code, language) {
  const name = language.toLowerCase();
  if (PLAIN.has(name) || code.length > LONGEST) return [code];
  const comment = HASH.has(name) ? /#[^\n]*/y : DASHES.has(name) ? /--[^\n]*/y : SLASHES;
  const rules = [
    [comment, "comment"],
    [STRING, "string"],
    [NUMBER, "number"],
    [WORD, "word"],
  ];
  const nodes = [];
  let plain = "";
  for (let at = 0; at < code.length;) {
    const [text, kind] = first(rules, code, at);
    if (kind === null || (kind === "word" && !WORDS.has(text))) plain += text;
    else {
      nodes.push(plain, make("span", { class: kind }, text));
      plain = "";
    }
    at += text.length;
  }
  return [...nodes, plain].filter((node) => node !== "");
}

function first(rules, code, at) {
  for (const [rule, kind] of rules) {
    rule.lastIndex = at;
    const found = rule.exec(code);
    if (found) return [found[0], kind];
  }
  return [code[at], null];
}
