// The routing view: which experts each token of an answer used, by layer, and how often each was used.

import { byId, make } from "./dom.js";
import { countExperts, HeatMap } from "./heat.js";
import { recall, remember } from "./memory.js";

const percent = (part, whole) => `${whole ? Math.round((100 * part) / whole) : 0}%`;

export class RoutingView {
  #answer = null; // the message whose tokens are shown
  #tokens = []; // of the whole conversation
  #follow = true; // the newest token, while an answer is written
  #map;
  #asked = false;

  constructor() {
    this.#map = new HeatMap(byId("map"), (cell) => {
      byId("cell").textContent = cell
        ? `Layer ${cell.layer + 1}, expert ${cell.expert + 1}: ${cell.count} of ${cell.total} tokens`
        : "";
    });
    byId("token").addEventListener("input", () => this.#select(byId("token").valueAsNumber - 1));
    const pick = (event) => {
      const place = [...byId("tokens").children].indexOf(event.target.closest("span"));
      if (place >= 0) this.#select(place);
    };
    byId("tokens").addEventListener("pointerover", (event) => event.pointerType === "mouse" && pick(event));
    byId("tokens").addEventListener("click", pick);
    byId("with-routing").checked = recall("routing", true);
    byId("with-routing").addEventListener("change", () => remember("routing", this.isWanted()));
    byId("scope").addEventListener("change", () => this.draw());
    byId("as-text").addEventListener("toggle", () => this.draw());
    new ResizeObserver(() => this.draw()).observe(byId("map").parentElement);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw());
  }

  /** Whether new answers are to tell their routing. */
  isWanted = () => byId("with-routing").checked;

  /** Shows the last answer of `messages` that tells its routing; `hasExperts`: whether the model has any. */
  show(messages, hasExperts) {
    const told = messages.filter((message) => message.routing);
    const answer = told.at(-1) ?? null;
    if (answer !== this.#answer) {
      this.#follow = true;
      byId("tokens").replaceChildren();
    }
    this.#answer = answer;
    this.#tokens = told.flatMap((message) => message.routing.experts);
    byId("routing-view").hidden = !answer;
    byId("routing-hint").textContent = !hasExperts
      ? "This model has no experts: every token takes the same way."
      : answer
        ? "The experts in the pass that wrote each token, by layer. Point at a token, or use the slider."
        : "No answer here tells which experts wrote its tokens yet. Send a message.";
    byId("with-routing").disabled = !hasExperts;
    if (answer) this.#grow();
  }

  #grow() {
    const { pieces, experts } = this.#answer.routing;
    const strip = byId("tokens");
    for (let place = strip.childElementCount; place < pieces.length; place += 1) {
      strip.append(make("span", {}, pieces[place].replaceAll("\n", "⏎\n") || "·"));
    }
    byId("token").max = experts.length;
    if (this.#follow) this.#mark(experts.length - 1);
    else this.draw();
  }

  #select(place) {
    this.#follow = place === this.#answer.routing.experts.length - 1;
    this.#mark(place);
  }

  #mark(place) {
    const strip = byId("tokens");
    strip.querySelector(".selected")?.classList.remove("selected");
    const span = strip.children[place];
    span?.classList.add("selected");
    if (span) {
      const below = span.offsetTop + span.offsetHeight - strip.scrollTop - strip.clientHeight;
      if (below > 0 || span.offsetTop < strip.scrollTop)
        strip.scrollTop += below > 0 ? below : span.offsetTop - strip.scrollTop;
    }
    byId("token").value = place + 1;
    this.draw();
  }

  /** Draws once a frame, however often it is asked to. */
  draw() {
    if (this.#asked || !this.#answer || byId("routing").hidden) return;
    this.#asked = true;
    requestAnimationFrame(() => {
      this.#asked = false;
      if (this.#answer?.routing?.experts.length && !byId("routing").hidden) this.#draw();
    });
  }

  #draw() {
    const { routing } = this.#answer;
    const place = Math.min(byId("token").valueAsNumber, routing.experts.length) - 1;
    const whole = document.querySelector("#scope input:checked").value === "conversation";
    const tokens = whole ? this.#tokens : routing.experts;
    const counts = countExperts(tokens, routing);
    const used = routing.experts[place];
    const most = this.#map.draw(routing, counts, tokens.length, used);
    const piece = routing.pieces[place] || "part of a character";
    const spelt = `Token ${place + 1} of ${routing.experts.length}: “${piece}”`;
    byId("token").setAttribute("aria-valuetext", spelt);
    byId("token-text").textContent = spelt;
    byId("most").textContent = percent(most, tokens.length);
    const unused = counts.flat().filter((count) => count === 0).length;
    const size = routing.layers * routing.width;
    const map = `Map of ${routing.layers} layers and ${routing.width} experts over ${tokens.length} tokens`;
    const told = `${map}: ${unused} of ${size} experts were never used. The table below tells the same.`;
    byId("map").setAttribute("aria-label", told);
    if (byId("as-text").open) byId("routing-table").replaceChildren(table(counts, used, routing.active, tokens.length));
  }
}

function table(counts, used, active, total) {
  const rows = counts.map((row, layer) => {
    const mine = used.slice(layer * active, (layer + 1) * active).map((expert) => expert + 1);
    const order = row.map((count, expert) => [count, expert]).sort((a, b) => b[0] - a[0] || a[1] - b[1]);
    const often = order
      .slice(0, 3)
      .filter(([count]) => count)
      .map(([count, expert]) => `${expert + 1} (${percent(count, total)})`);
    const never = row.filter((count) => count === 0).length;
    return make(
      "tr",
      {},
      make("th", { scope: "row" }, String(layer + 1)),
      ...[mine.join(", "), often.join(", "), String(never)].map((text) => make("td", {}, text)),
    );
  });
  const head = ["Layer", "This token's experts", "Most used", "Never used"].map((text) =>
    make("th", { scope: "col" }, text),
  );
  return make("table", {}, make("thead", {}, make("tr", {}, ...head)), make("tbody", {}, ...rows));
}
