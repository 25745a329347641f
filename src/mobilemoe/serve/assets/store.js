// Conversations in this browser's IndexedDB; where it has none, in memory, until the page is closed.

const NAME = "mobilemoe";
const TABLE = "conversations";

const settled = (request) =>
  new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });

export class Store {
  /** `lasting`: whether what is put will be there after the page has been closed. */
  lasting = true;
  #database = null;
  #memory = new Map();
  #news = new BroadcastChannel(NAME);

  /** `onNews` is called when another tab has changed something. */
  static async open(onNews) {
    const store = new Store();
    try {
      const opening = indexedDB.open(NAME, 1);
      opening.onupgradeneeded = () => opening.result.createObjectStore(TABLE, { keyPath: "id" });
      store.#database = await settled(opening);
    } catch {
      store.lasting = false;
    }
    store.#news.onmessage = (event) => onNews(event.data);
    return store;
  }

  #table() {
    return this.#database.transaction(TABLE, "readonly").objectStore(TABLE);
  }

  /** Resolves when `change(table)` is done. It is committed without waiting for that: a page that closes has no time. */
  #write(change) {
    const transaction = this.#database.transaction(TABLE, "readwrite");
    const request = change(transaction.objectStore(TABLE));
    transaction.commit();
    return settled(request);
  }

  /** All conversations, the one that changed last first. */
  async all() {
    const found = this.#database ? await settled(this.#table().getAll()) : [...this.#memory.values()];
    return found.sort((a, b) => b.updated - a.updated);
  }

  async get(id) {
    return (this.#database ? await settled(this.#table().get(id)) : this.#memory.get(id)) ?? null;
  }

  async put(conversation) {
    if (this.#database) await this.#write((table) => table.put(conversation));
    else this.#memory.set(conversation.id, conversation);
    this.#news.postMessage(conversation.id);
  }

  async remove(id) {
    if (this.#database) await this.#write((table) => table.delete(id));
    else this.#memory.delete(id);
    this.#news.postMessage(id);
  }
}
