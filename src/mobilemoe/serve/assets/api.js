// Requests to the server that this page came from, and to no other.

const KEY = "mobilemoe.key";
const SILENT = 502; // stands for a server that does not answer

export class ApiFailure extends Error {
  constructor(status, message, code = null) {
    super(message);
    this.status = status;
    this.code = code;
  }
}

/** The key stays in this tab, until it is closed. */
export const setKey = (key) => sessionStorage.setItem(KEY, key);
const headers = () => {
  const key = sessionStorage.getItem(KEY);
  return key ? { Authorization: `Bearer ${key}` } : {};
};

async function request(path, options = {}) {
  let response;
  try {
    response = await fetch(path, {
      ...options,
      headers: { ...headers(), ...options.headers },
      cache: "no-store",
      referrerPolicy: "no-referrer",
    });
  } catch (fault) {
    if (fault.name === "AbortError") throw fault;
    throw new ApiFailure(SILENT, "The server does not answer. Is it still running?");
  }
  if (!response.ok && path !== "health") throw await failureOf(response);
  return response;
}

async function failureOf(response) {
  try {
    const { error } = await response.json();
    return new ApiFailure(response.status, sentence(error.message), error.code);
  } catch {
    return new ApiFailure(response.status, `The server answered with the status ${response.status}.`);
  }
}

const sentence = (text) => `${text[0].toUpperCase()}${text.slice(1)}${/[.!?]$/.test(text) ? "" : "."}`;

/** "loading", "ready", "draining", or "silent" where nothing answers. */
export async function health() {
  try {
    return (await (await request("health")).json()).status;
  } catch {
    return "silent";
  }
}

/** The model: { id, x_mobilemoe: { context, layers, experts, experts_per_token } }, the latter once it is loaded. */
export async function model() {
  return (await (await request("v1/models")).json()).data[0];
}

/** Bytes that the server's process has in memory; null where it does not tell. */
export async function memory() {
  try {
    const text = await (await request("metrics")).text();
    const found = /^process_resident_memory_bytes (\S+)$/m.exec(text);
    return found ? Number(found[1]) : null;
  } catch {
    return null;
  }
}

/** Asks for an answer; `onEvent` gets each event of its stream. Ends with the stream; ApiFailure or AbortError. */
export async function chat(body, signal, onEvent) {
  const response = await request("v1/chat/completions", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
    signal,
  });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read().catch((fault) => {
      if (fault.name === "AbortError") throw fault;
      throw new ApiFailure(SILENT, "The connection broke off.");
    });
    if (done) throw new ApiFailure(SILENT, "The connection ended before the answer did.");
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      if (!line.startsWith("data:")) continue;
      const data = line.slice(5).trim();
      if (data === "[DONE]") return;
      const event = JSON.parse(data);
      if (event.error) throw new ApiFailure(500, sentence(event.error.message), event.error.code);
      onEvent(event);
    }
  }
}
