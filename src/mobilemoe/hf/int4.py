"""Layers whose weights stay packed in INT4 (spec 3.1): what a product needs is expanded for that product alone.

B batch, T tokens, N tokens of all rows, P tokens of one expert, E experts, A active experts per token, D hidden,
F expert width, I inputs, O outputs, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from mobilemoe.checkpoint.layout import Weight, stored_tensors
from mobilemoe.config import GROUP_SIZE, GroupAxis
from mobilemoe.model.experts import swiglu
from mobilemoe.model.norm import RMSNorm

_PIECE = 2**24  # weights of a matrix that are expanded at once: 64 MiB in fp32
_DTYPES = {"U8": torch.uint8, "F16": torch.float16}


def dequantize(packed: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """Nibbles [..., I/2] and scales [..., I/32] -> weights [..., I]: exact in fp32, rounded to nearest in less."""
    pairs, factor = packed.unflatten(-1, (-1, GROUP_SIZE // 2)), scale.float().unsqueeze(-1)
    weight = torch.empty(*pairs.shape, 2, dtype=torch.float32, device=packed.device)
    torch.mul((pairs << 4).view(torch.int8) >> 4, factor, out=weight[..., 0])
    torch.mul(pairs.view(torch.int8) >> 4, factor, out=weight[..., 1])
    return weight.flatten(-3).to(dtype)


class Int4Product(torch.autograd.Function):
    """x_I times an INT4 matrix, [..., O]. For the backward pass the packed matrix is kept, not the expanded one.

    The matrix is stored as [O, I] with `outputs_first`, else as [I, O].
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, packed: Tensor, scale: Tensor, outputs_first: bool) -> Tensor:
        ctx.save_for_backward(packed, scale)
        ctx.outputs_first = outputs_first
        weight = dequantize(packed, scale, x.dtype)
        return x @ (weight.t() if outputs_first else weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        packed, scale = ctx.saved_tensors
        weight = dequantize(packed, scale, grad.dtype)
        return grad @ (weight if ctx.outputs_first else weight.t()), None, None, None


def _product(x: Tensor, packed: Tensor, scale: Tensor, outputs_first: bool) -> Tensor:
    result: Tensor = Int4Product.apply(x, packed, scale, outputs_first)
    return result


class Packed(nn.Module):
    """A module whose parameters are the nibbles and scales of a file: zeros until they are read, and never trained."""

    def add(self, weight: Weight, axis: GroupAxis) -> None:
        """Parameters for `weight` under the names, and with the shapes and dtypes, of the file."""
        for name, (dtype, shape) in stored_tensors(weight, axis).items():
            self.register_parameter(name, nn.Parameter(torch.zeros(shape, dtype=_DTYPES[dtype]), requires_grad=False))

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """As of nn.Module, but frozen: transformers makes every floating-point parameter trainable that it reads."""
        if param is not None:
            param.requires_grad_(False)
        super().register_parameter(name, param)


class Int4Linear(Packed):
    """A linear layer without bias, its matrix [O, I] in INT4. A large one, such as the head, is expanded in pieces."""

    qweight: Tensor
    weight_scale: Tensor

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.add(Weight("weight", (out_features, in_features), "dense", "matrix"), "in")

    def forward(self, x: Tensor) -> Tensor:
        rows = max(1, _PIECE // self.in_features)
        pieces = zip(self.qweight.split(rows), self.weight_scale.split(rows), strict=True)
        return torch.cat([_product(x, packed, scale, True) for packed, scale in pieces], -1)


class Int4Embedding(Packed):
    """Embedding rows [V, D] in INT4; the rows of a text are expanded, to the default dtype when the model was made."""

    qweight: Tensor
    weight_scale: Tensor

    def __init__(self, vocab_size: int, hidden_size: int) -> None:
        super().__init__()
        self.dtype = torch.get_default_dtype()
        self.add(Weight("weight", (vocab_size, hidden_size), "embedding", "matrix"), "in")

    def forward(self, tokens_BT: Tensor) -> Tensor:
        return dequantize(self.qweight[tokens_BT], self.weight_scale[tokens_BT], self.dtype)


class Int4Stacks(Packed):
    """The routed experts' INT4 weights, grouped along `axis`, under the names of the checkpoint."""

    def __init__(self, experts: int, hidden_size: int, width: int, axis: GroupAxis) -> None:
        super().__init__()
        self.outputs_first = axis == "in"
        self.add(Weight("gate_up_proj", (experts, hidden_size, 2 * width), "routed", "experts"), axis)
        self.add(Weight("down_proj", (experts, width, hidden_size), "routed", "experts"), axis)

    def expand(self, name: str, dtype: torch.dtype) -> Tensor:
        """All matrices of `name` ("gate_up" or "down") as [E, I, O]: one piece of one layer."""
        weight = dequantize(getattr(self, f"{name}_qweight"), getattr(self, f"{name}_scale"), dtype)
        return weight.mT if self.outputs_first else weight

    def one_by_one(self, x_ND: Tensor, experts_NA: Tensor, weights_NA: Tensor) -> Tensor:
        """The weighted sums y_ND of the chosen experts, of which one is expanded at a time."""
        y_ND = torch.zeros_like(x_ND)
        for expert in experts_NA.unique().tolist():
            token_P, slot_P = (experts_NA == expert).nonzero(as_tuple=True)
            act_PF = swiglu(self._of(expert, "gate_up", x_ND[token_P]))
            out_PD = self._of(expert, "down", act_PF)
            y_ND = y_ND.index_add(0, token_P, out_PD * weights_NA[token_P, slot_P, None].to(out_PD.dtype))
        return y_ND

    def _of(self, expert: int, name: str, x_PI: Tensor) -> Tensor:
        packed, scale = getattr(self, f"{name}_qweight")[expert], getattr(self, f"{name}_scale")[expert]
        return _product(x_PI, packed, scale, self.outputs_first)


def use_int4(module: nn.Module) -> None:
    """Replaces what an INT4 file stores packed in `module` (experts aside), and gives the rest the file's dtypes."""
    for name, child in module.named_children():
        if isinstance(child, nn.Linear):
            setattr(module, name, Int4Linear(child.in_features, child.out_features))
        elif isinstance(child, nn.Embedding):
            setattr(module, name, Int4Embedding(child.num_embeddings, child.embedding_dim))
        elif isinstance(child, RMSNorm):
            child.to(torch.bfloat16)
        else:
            use_int4(child)


def keeping_dtypes(change: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """`change`, a move or a cast of nn.Module, without the cast: casting scales to bf16 would change the weights."""

    def changed(x: Tensor) -> Tensor:
        if not x.is_floating_point():
            return change(x)
        return change(x.view(torch.uint8)).view(x.dtype)

    return changed
