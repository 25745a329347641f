"""A second implementation of the forward pass, slow, in float64 NumPy, from spec sections 2 and 3 alone.

It shares no code with the package: its own safetensors reader, its own INT4, one token, head and expert at a time.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

GROUP = 32
DTYPES = {"U8": np.uint8, "F16": np.float16, "F32": np.float32, "BF16": np.uint16}


def read_safetensors(path: Path) -> dict[str, np.ndarray]:
    """Every tensor by stored name; floats as float64, nibbles as bytes."""
    data = path.read_bytes()
    header_end = 8 + int.from_bytes(data[:8], "little")
    tensors = {}
    for name, entry in json.loads(data[8:header_end]).items():
        if name == "__metadata__":
            continue
        begin, end = entry["data_offsets"]
        array = np.frombuffer(data[header_end + begin : header_end + end], DTYPES[entry["dtype"]])
        if entry["dtype"] == "BF16":  # the upper half of a float32
            array = (array.astype(np.uint32) << 16).view(np.float32)
        array = array.reshape(entry["shape"])
        tensors[name] = array if entry["dtype"] == "U8" else array.astype(np.float64)
    return tensors


def expand_int4(packed: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Nibbles, low one first, in two's complement, times the scale of their 32 neighbours in the last dimension."""
    codes = np.stack([packed & 15, packed >> 4], axis=-1).reshape(*packed.shape[:-1], -1).astype(np.float64)
    codes[codes > 7] -= 16
    return codes * np.repeat(scale, GROUP, axis=-1)


class Weights:
    """A checkpoint folder: its config.json, and its weights in logical shape, whichever way they are stored."""

    def __init__(self, folder: Path) -> None:
        self.config: dict[str, Any] = json.loads((folder / "config.json").read_text())
        self.tensors = read_safetensors(folder / "model.safetensors")

    def has(self, name: str) -> bool:
        return name in self.tensors

    def vector(self, name: str) -> np.ndarray:
        return self.tensors[name]

    def matrix(self, name: str) -> np.ndarray:
        """[out, in], for `name` without its ".weight"."""
        if name + ".weight" in self.tensors:
            return self.tensors[name + ".weight"]
        return expand_int4(self.tensors[name + ".qweight"], self.tensors[name + ".weight_scale"])

    def experts(self, name: str) -> np.ndarray:
        """[E, in, out], for `name` "….gate_up" or "….down"."""
        if name + "_proj" in self.tensors:
            return self.tensors[name + "_proj"]
        weight = expand_int4(self.tensors[name + "_qweight"], self.tensors[name + "_scale"])
        axis = self.config["quantization"].get("expert_group_axis", "out")
        return weight.transpose(0, 2, 1) if axis.startswith("in") else weight


def rms_norm(x: np.ndarray, weight: np.ndarray | float, eps: float) -> np.ndarray:
    return x / math.sqrt(sum(v * v for v in x) / len(x) + eps) * weight


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def swiglu(gate: np.ndarray, up: np.ndarray) -> np.ndarray:
    return gate * sigmoid(gate) * up


def frequencies(config: dict[str, Any]) -> list[float]:
    head_dim, scaling = config["head_dim"], config.get("rope_scaling")
    plain = [config["rope_theta"] ** (-2 * pair / head_dim) for pair in range(head_dim // 2)]
    if scaling is None:
        return plain
    context, factor = scaling["original_max_position_embeddings"], scaling["factor"]
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    scaled = []
    for frequency in plain:
        wavelength = 2 * math.pi / frequency
        if wavelength > context / low:
            scaled.append(frequency / factor)
        elif wavelength < context / high or low == high:
            scaled.append(frequency)
        else:
            keep = (context / wavelength - low) / (high - low)
            scaled.append(keep * frequency + (1 - keep) * frequency / factor)
    return scaled


def rotate(head: np.ndarray, position: int, frequency: list[float]) -> np.ndarray:
    """Turns each adjacent pair of one head by position * frequency."""
    out = np.empty_like(head)
    for pair, f in enumerate(frequency):
        cos, sin = math.cos(position * f), math.sin(position * f)
        a, b = head[2 * pair], head[2 * pair + 1]
        out[2 * pair], out[2 * pair + 1] = a * cos - b * sin, a * sin + b * cos
    return out


def qk_norm_kind(config: dict[str, Any]) -> str:
    return config.get("qk_norm", "head" if config.get("use_qk_norm", True) else "none")


def project_heads(weights: Weights, stem: str, x: np.ndarray, position: int) -> list[np.ndarray]:
    """The normalised and rotated query or key heads of one token; `stem` ends in "q" or "k"."""
    config, eps, kind = weights.config, weights.config["rms_norm_eps"], qk_norm_kind(weights.config)
    whole = weights.matrix(stem + "_proj") @ x
    if kind == "projection_weight":
        whole = rms_norm(whole, weights.vector(stem + "_norm.weight"), eps)
    heads = list(whole.reshape(-1, config["head_dim"]))
    if kind == "head_weight":
        heads = [rms_norm(head, weights.vector(stem + "_norm.weight"), eps) for head in heads]
    heads = [rotate(head, position, frequencies(config)) for head in heads]
    if kind == "head":
        heads = [rms_norm(head, 1.0, eps) for head in heads]
    return heads


def attention(weights: Weights, layer: int, xs: list[np.ndarray]) -> list[np.ndarray]:
    config, stem = weights.config, f"model.layers.{layer}.self_attn."
    head_dim, heads = config["head_dim"], config["num_attention_heads"]
    per_key = heads // config["num_key_value_heads"]
    scale = config.get("attention_scale")
    scale = 1 / math.sqrt(head_dim) if scale is None else scale
    kinds = config.get("layer_types") or ["full_attention"] * config["num_hidden_layers"]
    window = config["sliding_window"] if kinds[layer] == "sliding_attention" else len(xs)
    queries = [project_heads(weights, stem + "q", x, t) for t, x in enumerate(xs)]
    keys = [project_heads(weights, stem + "k", x, t) for t, x in enumerate(xs)]
    v_proj, o_proj = weights.matrix(stem + "v_proj"), weights.matrix(stem + "o_proj")
    values = [(v_proj @ x).reshape(-1, head_dim) for x in xs]
    outputs = []
    for t in range(len(xs)):
        mixed = []
        for head in range(heads):
            seen = range(max(0, t - window + 1), t + 1)
            score = np.array([scale * (queries[t][head] @ keys[s][head // per_key]) for s in seen])
            share = np.exp(score - score.max())
            share /= share.sum()
            mixed.append(sum(p * values[s][head // per_key] for p, s in zip(share, seen, strict=True)))
        outputs.append(o_proj @ np.concatenate(mixed))
    return outputs


def dense_ffn(weights: Weights, stem: str, x: np.ndarray) -> np.ndarray:
    gate, up = weights.matrix(stem + "gate_proj") @ x, weights.matrix(stem + "up_proj") @ x
    return weights.matrix(stem + "down_proj") @ swiglu(gate, up)


Routes = list[list[tuple[int, float]]]  # of each token the chosen experts, best first, and their weights


def scores(weights: Weights, logits: np.ndarray) -> np.ndarray:
    if weights.config.get("router_score", "sigmoid") == "sigmoid":
        return sigmoid(logits)
    return np.exp(logits) / np.exp(logits).sum()


def ranked(weights: Weights, stem: str, logits: np.ndarray) -> list[int]:
    """All experts, the best for these logits first."""
    ranking = scores(weights, logits)
    if weights.has(stem + "expert_bias"):
        ranking = ranking + weights.vector(stem + "expert_bias")
    return sorted(range(len(ranking)), key=lambda e: (-ranking[e], e))


def weighed(weights: Weights, logits: np.ndarray, chosen: list[int]) -> list[tuple[int, float]]:
    config, score = weights.config, scores(weights, logits)
    total = sum(score[e] for e in chosen) + 1e-20 if config["norm_topk_prob"] else 1.0
    return [(e, score[e] / total * config["routed_scaling_factor"]) for e in chosen]


def route(weights: Weights, stem: str, logits_TE: np.ndarray) -> Routes:
    active = weights.config["num_experts_per_tok"]
    return [weighed(weights, logits, ranked(weights, stem, logits)[:active]) for logits in logits_TE]


def moe(weights: Weights, stem: str, xs: list[np.ndarray], routed: Callable[..., Routes]) -> list[np.ndarray]:
    gate_up, down = weights.experts(stem + "experts.gate_up"), weights.experts(stem + "experts.down")
    width = down.shape[1]
    outputs = []
    router = weights.vector(stem + "router.weight")
    for x, chosen in zip(xs, routed(weights, stem, np.stack([router @ x for x in xs])), strict=True):
        y = np.zeros_like(x)
        for expert, weight in chosen:
            both = x @ gate_up[expert]
            y += weight * (swiglu(both[:width], both[width:]) @ down[expert])
        if weights.config["intermediate_size_mlp"]:
            y += dense_ffn(weights, stem + "shared_expert.", x)
        outputs.append(y)
    return outputs


def reference_logits(folder: Path, ids: list[int], routed: Callable[..., Routes] = route) -> np.ndarray:
    """float64 logits [T, V] of the tokens `ids` as one document, routed(weights, stem, logits_TE) in each layer."""
    weights = Weights(folder)
    config, eps = weights.config, weights.config["rms_norm_eps"]
    embedding = weights.matrix("model.embed_tokens")
    xs = [embedding[i] for i in ids]
    for layer in range(config["num_hidden_layers"]):
        stem = f"model.layers.{layer}."
        norm = weights.vector(stem + "input_layernorm.weight")
        mixed = attention(weights, layer, [rms_norm(x, norm, eps) for x in xs])
        hs = [x + a for x, a in zip(xs, mixed, strict=True)]
        norm = weights.vector(stem + "post_attention_layernorm.weight")
        normed = [rms_norm(h, norm, eps) for h in hs]
        if config.get("ffn_type", "moe") == "moe":
            ys = moe(weights, stem + "feed_forward.", normed, routed)
        else:
            ys = [dense_ffn(weights, stem + "feed_forward.", x) for x in normed]
        xs = [h + y for h, y in zip(hs, ys, strict=True)]
    head = embedding if config["tie_word_embeddings"] else weights.matrix("lm_head")
    return np.stack([head @ rms_norm(x, weights.vector("model.norm.weight"), eps) for x in xs])
