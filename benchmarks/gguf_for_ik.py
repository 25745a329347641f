"""A GGUF file for ik_llama.cpp, with the weights of another; benchmarks/peers.py takes it.

    python benchmarks/gguf_for_ik.py GGUF OUT

GGUF is one of `mobilemoe export MODEL --to gguf`. Of the two architectures that it may have, ik_llama.cpp knows
`glm4moe`, for which it wants biases of q, k and v: here they are zeros. RoPE is plain in that architecture, so a model
with scaled RoPE writes another text, at the same speed.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
from gguf import GGUFReader, GGUFValueType, GGUFWriter

from mobilemoe.files import atomic_file

KNOWN, OTHER = "glm4moe", "exaone-moe"
BIASED = ("attn_q.weight", "attn_k.weight", "attn_v.weight")


def shared_experts(source: GGUFReader) -> int:
    """How many routed experts are as wide as the shared expert of an `OTHER`. SystemExit if no whole number of them."""
    shared, routed = (
        source.fields[f"{OTHER}.{key}"].contents()
        for key in ("expert_shared_feed_forward_length", "expert_feed_forward_length")
    )
    if shared % routed:
        sys.exit(f"the shared expert has width {shared}, but {KNOWN} wants a multiple of {routed}")
    return int(shared // routed)


def convert(source: GGUFReader, out: Path) -> None:
    """Writes `out`. SystemExit for an architecture or a shared expert that does not fit."""
    architecture = source.fields["general.architecture"].contents()
    if architecture not in (KNOWN, OTHER):
        sys.exit(f"the architecture is {architecture}, but must be {KNOWN} or {OTHER}")
    writer = GGUFWriter(out, KNOWN)
    for name, field in source.fields.items():
        if name.startswith("GGUF.") or name == "general.architecture" or ".sliding_window" in name:
            continue
        value = shared_experts(source) if name == f"{OTHER}.expert_shared_count" else field.contents()
        items = field.types[-1] if field.types[0] is GGUFValueType.ARRAY else None
        writer.add_key_value(name.replace(OTHER, KNOWN), value, field.types[0], sub_type=items)
    for tensor in source.tensors:
        if tensor.name == "rope_freqs.weight":
            continue
        name = tensor.name.replace(".ffn_norm.", ".post_attention_norm.")
        writer.add_tensor(name, tensor.data, raw_dtype=tensor.tensor_type)
        if name.endswith(BIASED):
            _, outputs = tensor.shape
            writer.add_tensor(name.replace(".weight", ".bias"), np.zeros(outputs, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("gguf", type=Path)
    parser.add_argument("out", type=Path)
    given = parser.parse_args()
    if given.out.exists():
        parser.error(f"{given.out} exists")
    try:
        with atomic_file(given.out) as part:
            convert(GGUFReader(given.gguf), Path(part.name))
    except (OSError, ValueError) as fault:
        sys.exit(f"{given.gguf} cannot be converted: {fault}")


if __name__ == "__main__":
    main()
