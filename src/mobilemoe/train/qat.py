"""Quantisation-aware training (spec section 5): the forward pass of the INT4 file that will be made of the weights.

`prepare` changes the classes of a model's modules to those below, in place, and keeps parameters and their names. The
router stays in fp32; norms and selection biases are rounded to bfloat16, as files store them. Optionally the model also
learns from a BF16 teacher (`Teacher`, `divergence_sum`), which is our addition to the specification.

N tokens, D hidden, E experts, A active experts per token, F expert width, V vocabulary, C tokens of a chunk.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from mobilemoe.checkpoint import Checkpoint, weights
from mobilemoe.checkpoint.layout import stored_tensors
from mobilemoe.checkpoint.run_folder import newest_model
from mobilemoe.config import GROUP_SIZE
from mobilemoe.data.packing import NO_TARGET, Ids
from mobilemoe.errors import ConfigError
from mobilemoe.hub import find_model
from mobilemoe.model import MobileMoE
from mobilemoe.model.experts import Experts, unchanged
from mobilemoe.model.norm import RMSNorm, at_least_fp32, rms_norm
from mobilemoe.model.router import Router, Routing
from mobilemoe.quant.fake import fake_bf16, fake_int4, fake_int8, first_scale
from mobilemoe.train.lora import Adapted
from mobilemoe.train.loss import CHUNK
from mobilemoe.train.recipe import QatTable

_Kind = TypeVar("_Kind", bound=nn.Module)
_LOGITS = 2**28  # that a GPU holds at a time for student and teacher each: 1 GB in fp32


def prepare(model: MobileMoE, table: QatTable) -> None:
    """Makes `model` compute as its INT4 export will, with straight-through gradients; attach LoRA adapters before.

    `learn_scales` adds parameters, named and shaped as the scales of INT4 files, which start at amax / 7.5. A
    checkpoint stores the unrounded weights and these scales: rounding them to INT4 (`mobilemoe.checkpoint`, or
    `quant.export` with learnt scales) gives exactly the values that the model computes with.
    Raises CheckpointError if a weight cannot be cut into groups of 32, and ConfigError for options that
    cannot be combined.
    """
    for weight in weights(model.config).values():
        stored_tensors(weight, table.group_axis)
    rounds = table.activations == "int8"
    if rounds and model.config.intermediate_size % GROUP_SIZE:
        raise ConfigError(
            f"intermediate_size is {model.config.intermediate_size}, but qat.activations 'int8' needs a multiple of "
            f"{GROUP_SIZE}: set it to 'none'"
        )
    dim = -2 if table.group_axis == "in" else -1
    for module in model.modules():
        if isinstance(module, Adapted):
            if table.learn_scales:
                raise ConfigError("qat.learn_scales is true, but with lora the weights' scales cannot be learnt")
            module.quantize = partial(fake_int4, dim=dim if isinstance(module, Experts) else -1)
            module.quantize_input = fake_int8 if rounds else None
        elif isinstance(module, Experts):
            experts = _become(module, QatExperts)
            experts.dim, experts.rounds_input = dim, rounds
            experts.before_down = fake_int8 if rounds else unchanged
            experts.gate_up_scale = _scale(experts.gate_up_proj, dim, table)
            experts.down_scale = _scale(experts.down_proj, dim, table)
        elif isinstance(module, nn.Linear):
            linear = _become(module, QatLinear)
            linear.rounds_input = rounds
            linear.weight_scale = _scale(linear.weight, -1, table)
        elif isinstance(module, nn.Embedding):
            embedding = _become(module, QatEmbedding)
            embedding.weight_scale = _scale(embedding.weight, -1, table)
        elif isinstance(module, RMSNorm):
            # The last norm's output is the input of the head, which has no module of its own where it is tied.
            _become(module, QatNorm).rounds_output = rounds and module is model.model.norm
        elif isinstance(module, Router):
            _become(module, QatRouter)


def round_linears(module: nn.Module) -> None:
    """Makes the linear layers in `module` compute with INT4 weights and INT8 inputs."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            linear = _become(layer, QatLinear)
            linear.rounds_input, linear.weight_scale = True, None


def _become(module: nn.Module, kind: type[_Kind]) -> _Kind:
    module.__class__ = kind
    return cast(_Kind, module)


def _scale(weight: Tensor, dim: int, table: QatTable) -> nn.Parameter | None:
    return nn.Parameter(first_scale(weight.detach(), dim).to(weight.dtype)) if table.learn_scales else None


class QatLinear(nn.Linear):
    """A linear map of INT8 activations with INT4 weights grouped along the input."""

    rounds_input: bool
    weight_scale: nn.Parameter | None

    def effective_weight(self) -> Tensor:
        """W_OI as the INT4 file will have it."""
        return fake_int4(self.weight, scale=self.weight_scale)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(fake_int8(x) if self.rounds_input else x, self.effective_weight())


class QatEmbedding(nn.Embedding):
    """An INT4 embedding; a look-up rounds only the rows that it reads."""

    weight_scale: nn.Parameter | None

    def effective_weight(self) -> Tensor:
        """The whole table as the INT4 file will have it; it is also the head where the two are tied."""
        return fake_int4(self.weight, scale=self.weight_scale)

    def forward(self, ids: Tensor) -> Tensor:
        take = nn.functional.embedding
        scale = None if self.weight_scale is None else take(ids, self.weight_scale)
        return fake_int4(take(ids, self.weight), scale=scale)


class QatExperts(Experts):
    """Routed experts with INT4 weights, and INT8 inputs of both products."""

    dim: int
    rounds_input: bool
    gate_up_scale: nn.Parameter | None
    down_scale: nn.Parameter | None

    def weights(self) -> tuple[Tensor, Tensor]:
        gate_up_scale = None if self.gate_up_scale is None else self.here(self.gate_up_scale)
        down_scale = None if self.down_scale is None else self.here(self.down_scale)
        gate_up_ED2F = fake_int4(self.here(self.gate_up_proj), self.dim, gate_up_scale)
        return gate_up_ED2F, fake_int4(self.here(self.down_proj), self.dim, down_scale)

    def forward(self, x_ND: Tensor, experts_NA: Tensor, weights_NA: Tensor, more: Sequence[Tensor] = ()) -> Tensor:
        return super().forward(fake_int8(x_ND) if self.rounds_input else x_ND, experts_NA, weights_NA, more)


class QatNorm(RMSNorm):
    """A norm whose weight is rounded to bfloat16."""

    rounds_output: bool

    def forward(self, x: Tensor) -> Tensor:
        device = x.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
        y = rms_norm(x, fake_bf16(self.weight), self.eps).to(dtype)
        return fake_int8(y) if self.rounds_output else y


class QatRouter(Router):
    """The fp32 router, with a selection bias that is rounded to bfloat16."""

    def forward(self, x_ND: Tensor, expert_bias_E: Tensor | None) -> Routing:
        return super().forward(x_ND, None if expert_bias_E is None else fake_bf16(expert_bias_E))


class Teacher:
    """A frozen teacher on `device`: the folder of a run or a model, a Hub id or a bundled name.

    It computes in fp32, or in bfloat16 with an fp32 router. Raises ConfigError if its vocabulary differs in size from
    the student's. The caller has to make sure that both have the same tokenizer.
    """

    def __init__(self, name: str, student: MobileMoE, device: torch.device, dtype: torch.dtype) -> None:
        with Checkpoint.open(newest_model(find_model(name))) as saved:
            if saved.config.vocab_size != student.config.vocab_size:
                raise ConfigError(
                    f"qat.distill_from is {name}, whose vocabulary has {saved.config.vocab_size} entries, "
                    f"but the model's has {student.config.vocab_size}"
                )
            self.model = MobileMoE(saved.config)
            self.model.load_weights(saved.weight)
        self.model.requires_grad_(False).eval().to(device)
        for module in self.model.modules():
            if not isinstance(module, Router):
                for parameter in module.parameters(recurse=False):
                    parameter.data = parameter.data.to(dtype)

    def hidden(self, tokens_BT: Tensor, positions_BT: Tensor, segments_BT: Ids) -> tuple[Tensor, Tensor]:
        """The last hidden states x_ND of the B T tokens, and the head_VD."""
        with torch.no_grad():
            x_BTD, _ = self.model.hidden(tokens_BT, positions_BT=positions_BT, segments_BT=segments_BT)
            return x_BTD.flatten(0, 1), self.model.head_VD


def divergence_sum(
    x_ND: Tensor, head_VD: Tensor, taught_x_ND: Tensor, taught_head_VD: Tensor, targets: Tensor
) -> Tensor:
    """Sum over tokens of KL(teacher || student) of the next-token distributions in nats, at temperature 1.

    `taught_...` are the teacher's, whose width D may differ; tokens with target -100 are left out. The teacher gets no
    gradient. The logits are products in the dtype of x, softmax and sums in at least fp32.
    """
    result: Tensor = _Divergence.apply(x_ND, head_VD, taught_x_ND, taught_head_VD, targets)  # type: ignore[no-untyped-call]
    return result


class _Divergence(torch.autograd.Function):
    """As in `loss`, the forward pass also computes the gradients, chunk by chunk, so that no logits are kept."""

    @staticmethod
    def forward(
        ctx: Any, x_ND: Tensor, head_VD: Tensor, taught_x_ND: Tensor, taught_head_VD: Tensor, targets_N: Tensor
    ) -> Tensor:
        total = torch.zeros((), dtype=torch.float64, device=x_ND.device)
        student_VD, teacher_VD = head_VD.to(x_ND.dtype), taught_head_VD.to(taught_x_ND.dtype)
        dx_ND = torch.empty_like(x_ND)
        dhead_VD = torch.zeros_like(at_least_fp32(head_VD))
        chunk = max(CHUNK, _LOGITS // len(head_VD)) if x_ND.is_cuda else CHUNK
        for start in range(0, len(x_ND), chunk):
            part = slice(start, start + chunk)
            taught_C1 = (targets_N[part] != NO_TARGET).unsqueeze(1)
            log_q_CV = at_least_fp32(x_ND[part] @ student_VD.t()).log_softmax(dim=-1)
            log_p_CV = at_least_fp32(taught_x_ND[part] @ teacher_VD.t()).log_softmax(dim=-1)
            p_CV = log_p_CV.exp()
            total += (p_CV * log_p_CV.sub_(log_q_CV) * taught_C1).sum()
            # d KL / d student's logits = q - p
            grad_CV = (log_q_CV.exp_().sub_(p_CV) * taught_C1).to(x_ND.dtype)
            dx_ND[part] = grad_CV @ student_VD
            dhead_VD += grad_CV.t() @ x_ND[part]
        ctx.save_for_backward(dx_ND, dhead_VD)
        ctx.head_dtype = head_VD.dtype
        return total.to(at_least_fp32(head_VD).dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        dx_ND, dhead_VD = ctx.saved_tensors
        return dx_ND * grads[0].to(dx_ND.dtype), (dhead_VD * grads[0]).to(ctx.head_dtype), None, None, None
