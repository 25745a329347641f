// The map of layers and experts: how many tokens each expert took part in, and which the selected token used.

const LABEL = 26; // pixels on the left, for the layer's number
const TOP = 16; // above, for the expert's
const FONT = "11px system-ui, sans-serif";

/** counts[layer][expert] over `tokens`, each a flat list of layers x active experts. */
export function countExperts(tokens, { layers, width, active }) {
  const counts = Array.from({ length: layers }, () => new Array(width).fill(0));
  for (const flat of tokens)
    for (const [place, expert] of flat.entries()) counts[Math.floor(place / active)][expert] += 1;
  return counts;
}

export class HeatMap {
  #canvas;
  #shape = null;
  #counts = [];
  #total = 0;

  /** `onCell(layer, expert, count, total)` is called for the cell under the pointer; with null for none. */
  constructor(canvas, onCell) {
    this.#canvas = canvas;
    canvas.addEventListener("pointermove", (event) => {
      const cell = this.#cellAt(event.offsetX, event.offsetY);
      onCell(cell && { ...cell, count: this.#counts[cell.layer][cell.expert], total: this.#total });
    });
    canvas.addEventListener("pointerleave", () => onCell(null));
  }

  #sizes() {
    const { layers, width: experts } = this.#shape;
    const width = this.#canvas.parentElement.clientWidth;
    const across = (width - LABEL) / experts;
    return {
      width,
      across,
      down: Math.min(24, Math.max(9, across)),
      height: TOP + layers * Math.min(24, Math.max(9, across)),
    };
  }

  #cellAt(x, y) {
    if (!this.#shape) return null;
    const { across, down } = this.#sizes();
    const [layer, expert] = [Math.floor((y - TOP) / down), Math.floor((x - LABEL) / across)];
    return layer >= 0 && layer < this.#shape.layers && expert >= 0 && expert < this.#shape.width
      ? { layer, expert }
      : null;
  }

  /** Draws the counts over `total` tokens, with rings around the experts in `selected` (flat). */
  draw(shape, counts, total, selected) {
    [this.#shape, this.#counts, this.#total] = [shape, counts, total];
    const { width, across, down, height } = this.#sizes();
    const scale = window.devicePixelRatio || 1;
    const canvas = this.#canvas;
    canvas.width = Math.round(width * scale);
    canvas.height = Math.round(height * scale);
    canvas.style.setProperty("height", `${height}px`);
    const style = getComputedStyle(canvas);
    const [heat, ring, text] = [style.color, style.borderTopColor, style.outlineColor];
    const draw = canvas.getContext("2d");
    draw.scale(scale, scale);
    draw.clearRect(0, 0, width, height);
    draw.font = FONT;
    draw.textBaseline = "middle";
    const gap = across > 8 ? 2 : 1;
    const most = Math.max(1, ...counts.flat());
    for (const [layer, row] of counts.entries()) {
      const y = TOP + layer * down;
      draw.fillStyle = text;
      draw.textAlign = "right";
      draw.fillText(String(layer + 1), LABEL - 7, y + down / 2);
      for (const [expert, count] of row.entries()) {
        const box = [LABEL + expert * across, y, across - gap, down - gap, 2];
        draw.beginPath();
        draw.roundRect(...box);
        draw.globalAlpha = 0.06 + 0.94 * (count / most);
        draw.fillStyle = heat;
        draw.fill();
        draw.globalAlpha = 1;
      }
    }
    draw.fillStyle = text;
    draw.textAlign = "center";
    const every = across > 18 ? 1 : across > 9 ? 5 : 10;
    for (let expert = 0; expert < shape.width; expert += 1) {
      if ((expert + 1) % every === 0 || expert === 0)
        draw.fillText(String(expert + 1), LABEL + (expert + 0.5) * across - gap / 2, TOP / 2);
    }
    draw.strokeStyle = ring;
    draw.lineWidth = 2;
    for (const [place, expert] of selected.entries()) {
      const layer = Math.floor(place / shape.active);
      draw.beginPath();
      draw.roundRect(LABEL + expert * across, TOP + layer * down, across - gap, down - gap, 2);
      draw.stroke();
    }
    return most;
  }
}
