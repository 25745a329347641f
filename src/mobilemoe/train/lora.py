"""LoRA (arXiv 2106.09685): low-rank matrices a, b are trained beside frozen weights, W + alpha / rank * a b.

Training computes x W + scale (x a) b, so that no gradient of the size of W is ever made; `merged` adds the adapters to
the weights for a checkpoint. With quantisation-aware training W + scale a b is computed and rounded in every step.

E experts, D hidden, F expert width, N tokens, A active experts per token, P = N A (token, expert) pairs, R rank; a
linear map goes from I inputs to O outputs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from mobilemoe.config import ModelConfig
from mobilemoe.errors import ConfigError
from mobilemoe.model import MobileMoE
from mobilemoe.model.attention import Attention
from mobilemoe.model.block import MoE, SwiGLU
from mobilemoe.model.experts import Experts, grouped_matmul, plus, swiglu, through_experts
from mobilemoe.train.recipe import LoraTable

_ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
_FFN = ("gate_proj", "up_proj", "down_proj")


class Adapted(nn.Module):
    """A module whose weights have adapters: parameters whose names begin with "lora_" beside those of the base.

    `quantize` rounds a merged weight and `quantize_input` what is multiplied with it; quantisation-aware training
    sets them. Without the first the adapters work on the activations.
    """

    scale: float
    quantize: Callable[[Tensor], Tensor] | None = None
    quantize_input: Callable[[Tensor], Tensor] | None = None

    def merged_weights(self) -> dict[str, Tensor]:
        """The base's weights by name with the adapters added, in fp32 (or float64, if they are), not rounded."""
        raise NotImplementedError

    def _merge(self, weight: Tensor, left: Tensor, right: Tensor) -> Tensor:
        """Not under autocast: what is trained with `quantize` must be what is saved."""
        with torch.autocast(weight.device.type, enabled=False):
            return torch.add(weight, left @ right, alpha=self.scale)


class LoraLinear(nn.Linear, Adapted):
    """A linear map W_OI with lora_a_RI and lora_b_OR."""

    def __init__(self, base: nn.Linear, rank: int, scale: float, generator: torch.Generator) -> None:
        super().__init__(base.in_features, base.out_features, bias=False, device="meta")
        self.weight, self.scale = base.weight, scale
        self.lora_a = _random(base.weight, (rank, base.in_features), base.in_features, generator)
        self.lora_b = _zeros(base.weight, (base.out_features, rank))

    def merged_weights(self) -> dict[str, Tensor]:
        return {"weight": self._merge(self.weight, self.lora_b, self.lora_a)}

    def forward(self, x: Tensor) -> Tensor:
        linear = nn.functional.linear
        if self.quantize is not None:
            x = x if self.quantize_input is None else self.quantize_input(x)
            return linear(x, self.quantize(self.merged_weights()["weight"]).to(x.dtype))
        thin = self.scale * linear(x, self.lora_a.to(x.dtype))
        return linear(x, self.weight) + linear(thin, self.lora_b.to(x.dtype))


class LoraExperts(Experts, Adapted):
    """Routed experts, dropless, with an adapter for each expert: a_EDR, b_ER2F for gate_up; a_EFR, b_ERD for down."""

    def __init__(self, config: ModelConfig, base: Experts, rank: int, scale: float, generator: torch.Generator) -> None:
        with torch.device("meta"):
            super().__init__(config)
        self.gate_up_proj, self.down_proj, self.scale = base.gate_up_proj, base.down_proj, scale
        self.lora_gate_up_a, self.lora_gate_up_b = _expert_adapter(base.gate_up_proj, rank, generator)
        self.lora_down_a, self.lora_down_b = _expert_adapter(base.down_proj, rank, generator)

    def merged_weights(self) -> dict[str, Tensor]:
        return {
            "gate_up_proj": self._merge(self.gate_up_proj, self.lora_gate_up_a, self.lora_gate_up_b),
            "down_proj": self._merge(self.down_proj, self.lora_down_a, self.lora_down_b),
        }

    def forward(self, x_ND: Tensor, experts_NA: Tensor, weights_NA: Tensor, more: Sequence[Tensor] = ()) -> Tensor:
        return plus(through_experts(x_ND, experts_NA, weights_NA, len(self.gate_up_proj), self._ffn), more)

    def _ffn(self, x_PD: Tensor, load_E: Tensor) -> Tensor:
        h_PF = swiglu(self._product(x_PD, self.gate_up_proj, self.lora_gate_up_a, self.lora_gate_up_b, load_E))
        return self._product(h_PF, self.down_proj, self.lora_down_a, self.lora_down_b, load_E)

    def _product(self, x_PI: Tensor, weight_EIO: Tensor, a_EIR: Tensor, b_ERO: Tensor, load_E: Tensor) -> Tensor:
        if self.quantize is not None:
            x_PI = x_PI if self.quantize_input is None else self.quantize_input(x_PI)
            return grouped_matmul(x_PI, self.quantize(self._merge(weight_EIO, a_EIR, b_ERO)), load_E)
        thin_PR = self.scale * grouped_matmul(x_PI, a_EIR, load_E)
        return grouped_matmul(x_PI, weight_EIO, load_E) + grouped_matmul(thin_PR, b_ERO, load_E)


def attach(model: MobileMoE, table: LoraTable, seed: int) -> None:
    """Freezes `model` and puts adapters on the parts that `table` names. At first they change nothing (b is zero).

    The selection bias must not be moved while adapters train, since the frozen router depends on it. The target
    "shared" covers the shared expert and, in a dense model, the FFN. Raises ConfigError if the model
    has none of the parts that `table` names.
    """
    model.requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    scale = table.alpha / table.rank

    def adapt(parent: nn.Module, names: tuple[str, ...]) -> None:
        for name in names:
            setattr(parent, name, LoraLinear(getattr(parent, name), table.rank, scale, generator))

    for module in [*model.modules()]:
        if isinstance(module, Attention) and "attention" in table.targets:
            adapt(module, _ATTENTION)
        elif isinstance(module, SwiGLU) and "shared" in table.targets:
            adapt(module, _FFN)
        elif isinstance(module, MoE) and "experts" in table.targets:
            module.experts = LoraExperts(model.config, module.experts, table.rank, scale, generator)
    if not adapter_state(model):
        raise ConfigError(f"lora.targets is {list(table.targets)}, but the model has none of these parts")


def merged(model: MobileMoE) -> dict[str, Tensor]:
    """The ordinary model's weights by canonical name (spec 3.2), on the CPU, with the adapters folded in.

    Merged weights are fp32 or more, the others as they are. Not rounded by `quantize`, which the export does.
    """
    weights = {name: tensor.cpu() for name, tensor in model.state_dict().items() if not _is_adapter(name)}
    with torch.no_grad():
        for path, module in model.named_modules():
            if isinstance(module, Adapted):
                weights |= {f"{path}.{name}": weight.cpu() for name, weight in module.merged_weights().items()}
    return weights


def adapter_state(model: MobileMoE) -> dict[str, Tensor]:
    """The adapters by name: the only weights that a run with adapters changes."""
    return {name: parameter for name, parameter in model.named_parameters() if _is_adapter(name)}


def base_fingerprint(model: MobileMoE) -> str:
    """A hash of the frozen weights: adapters are of no use with other weights than those they were trained on."""
    found = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(model.state_dict().items()):
        if not _is_adapter(name):
            found.update(f"{name}\0{tensor.dtype}\0".encode())
            found.update(tensor.cpu().contiguous().view(torch.uint8).numpy())
    return found.hexdigest()


def _is_adapter(name: str) -> bool:
    return name.rpartition(".")[2].startswith("lora_")


def _expert_adapter(weight_EIO: Tensor, rank: int, generator: torch.Generator) -> tuple[nn.Parameter, nn.Parameter]:
    experts, inputs, outputs = weight_EIO.shape
    a_EIR = _random(weight_EIO, (experts, inputs, rank), inputs, generator)
    return a_EIR, _zeros(weight_EIO, (experts, rank, outputs))


def _random(like: Tensor, shape: tuple[int, ...], inputs: int, generator: torch.Generator) -> nn.Parameter:
    """Uniform within 1 / sqrt(inputs), as a linear layer begins; drawn on the CPU, the same for every device."""
    bound = inputs**-0.5
    values = torch.rand(shape, generator=generator) * (2 * bound) - bound
    return nn.Parameter(values.to(like.device, _learning_dtype(like)))


def _zeros(like: Tensor, shape: tuple[int, ...]) -> nn.Parameter:
    return nn.Parameter(torch.zeros(shape, device=like.device, dtype=_learning_dtype(like)))


def _learning_dtype(like: Tensor) -> torch.dtype:
    """fp32 for adapters of bfloat16 weights: they are small, and bfloat16 would round their steps away."""
    return torch.promote_types(like.dtype, torch.float32)
