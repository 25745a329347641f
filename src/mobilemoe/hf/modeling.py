"""MobileMoE as a model of transformers 5: the parts of `mobilemoe.model` behind its interfaces (spec section 2).

B batch, T tokens, N tokens of all rows, D hidden, A active experts per token, V vocabulary. Parameter names are the
checkpoint's.
"""

from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache, GenerationMixin, PreTrainedModel
from transformers import initialization as init
from transformers.integrations.moe import use_experts_implementation
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import MoeCausalLMOutputWithPast, MoeModelOutputWithPast
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func
from transformers.utils.deprecation import deprecate_kwarg
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from mobilemoe.config_rules import FULL, SLIDING
from mobilemoe.hf.attention import MobileMoEAttention
from mobilemoe.hf.configuration import MobileMoEConfig
from mobilemoe.hf.int4 import Int4Embedding, Int4Linear, Int4Stacks, Packed, keeping_dtypes, use_int4
from mobilemoe.model.block import MoE, SwiGLU
from mobilemoe.model.experts import Routed, loop_experts
from mobilemoe.model.norm import RMSNorm, at_least_fp32
from mobilemoe.model.rope import RopeTable, rope_frequencies, rope_table
from mobilemoe.model.router import Router


@use_experts_implementation(is_transposed=True)
class MobileMoEExperts(nn.Module):
    """The routed experts' weights as [E, inputs, outputs]; this class's own forward is the "eager" implementation."""

    def __init__(self, config: MobileMoEConfig) -> None:
        super().__init__()
        self.num_experts, self.act_fn = config.num_local_experts, nn.functional.silu
        experts, hidden, width = config.num_local_experts, config.hidden_size, config.intermediate_size
        self.gate_up_proj = nn.Parameter(torch.empty(experts, hidden, 2 * width))
        self.down_proj = nn.Parameter(torch.empty(experts, width, hidden))

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        return loop_experts(Routed(hidden_states, top_k_index, top_k_weights, self.gate_up_proj, self.down_proj))


@use_experts_implementation(is_transposed=True)
class MobileMoEInt4Experts(Int4Stacks):
    """The same in INT4. "eager" expands one chosen expert at a time, the others all experts of the layer."""

    def __init__(self, config: MobileMoEConfig) -> None:
        axis = config.shape().expert_group_axis or "out"
        super().__init__(config.num_local_experts, config.hidden_size, config.intermediate_size, axis)
        self.num_experts, self.act_fn = config.num_local_experts, nn.functional.silu
        self.dtype = torch.get_default_dtype()

    @property
    def gate_up_proj(self) -> Tensor:
        return self.expand("gate_up", self.dtype)

    @property
    def down_proj(self) -> Tensor:
        return self.expand("down", self.dtype)

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        return self.one_by_one(hidden_states, top_k_index, top_k_weights)


class MobileMoELayer(GradientCheckpointingLayer):
    """One layer: h = x + Attention(norm(x)), then h + FFN(norm(h))."""

    def __init__(self, config: MobileMoEConfig, layer: int) -> None:
        super().__init__()
        shape = config.shape()
        self.input_layernorm = RMSNorm(shape.hidden_size, shape.rms_norm_eps)
        self.self_attn = MobileMoEAttention(config, layer)
        self.post_attention_layernorm = RMSNorm(shape.hidden_size, shape.rms_norm_eps)
        self.feed_forward: MoE | SwiGLU
        if not shape.is_moe:
            self.feed_forward = SwiGLU(shape.hidden_size, shape.intermediate_size)
            return
        self.feed_forward = MoE(shape)
        experts: Any = MobileMoEInt4Experts if shape.is_quantized else MobileMoEExperts
        self.feed_forward.experts = experts(config)
        router = self.feed_forward.router
        router.weight = nn.Parameter(router.weight.float())
        if shape.is_quantized and self.feed_forward.expert_bias is not None:
            self.feed_forward.expert_bias = self.feed_forward.expert_bias.to(torch.bfloat16)

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: RopeTable,
        attention_mask: Tensor | None = None,
        cache: Cache | None = None,
        **kwargs: Any,
    ) -> Tensor:
        attended, _ = self.self_attn(
            self.input_layernorm(hidden_states), position_embeddings, attention_mask, cache, **kwargs
        )
        hidden_states = hidden_states + attended
        fed = self.feed_forward(self.post_attention_layernorm(hidden_states))
        return hidden_states + (fed[0] if isinstance(self.feed_forward, MoE) else fed)


class MobileMoEPreTrainedModel(PreTrainedModel):
    """What transformers asks of a model: what it supports, and how weights begin."""

    config: MobileMoEConfig
    config_class = MobileMoEConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["MobileMoELayer"]  # noqa: RUF012 (transformers' own annotation, as below)
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _can_record_outputs = {  # noqa: RUF012
        "hidden_states": MobileMoELayer,
        "attentions": MobileMoEAttention,
        "router_logits": OutputRecorder(Router, index=0),
    }

    def __init__(self, config: MobileMoEConfig) -> None:
        super().__init__(config)
        # A model that is not read from a file is saved in the published layout.
        self._weight_conversions: list[Any] = []
        if config.quantization is not None:
            self.is_quantized = True  # Trainer refuses to train what is packed
            self._can_compile_fullgraph = False  # which experts are expanded depends on the text

    @property
    def dtype(self) -> torch.dtype:
        """What is computed in; of an INT4 model the weights do not tell."""
        if isinstance(embedding := self.get_input_embeddings(), Int4Embedding):
            return embedding.dtype
        return super().dtype

    def get_correct_experts_implementation(self, requested_experts: str | None) -> str:
        """As of transformers, but INT4 experts are expanded one by one unless told otherwise."""
        if requested_experts is None and self.config.quantization is not None:
            return "eager"
        return super().get_correct_experts_implementation(requested_experts)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        std = self.config.initializer_range
        if isinstance(module, Router):
            init.normal_(module.weight, std=std)
        elif isinstance(module, MobileMoEExperts):
            init.normal_(module.gate_up_proj, std=std)
            init.normal_(module.down_proj, std=std)
        elif isinstance(module, MoE) and module.expert_bias is not None:
            init.zeros_(module.expert_bias)
        elif isinstance(module, Packed):
            for parameter in module.parameters():
                init.zeros_(parameter)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Moves and casts; an INT4 model keeps the dtypes of its file, and computes in the dtype it was loaded with."""
        result: Self = super()._apply(keeping_dtypes(fn) if self.config.quantization is not None else fn, recurse)
        return result


class MobileMoEModel(MobileMoEPreTrainedModel):
    """Embedding, layers and the last norm."""

    def __init__(self, config: MobileMoEConfig) -> None:
        super().__init__(config)
        shape = config.shape()
        self.embed_tokens = nn.Embedding(shape.vocab_size, shape.hidden_size)
        self.layers = nn.ModuleList(MobileMoELayer(config, layer) for layer in range(shape.num_hidden_layers))
        self.norm = RMSNorm(shape.hidden_size, shape.rms_norm_eps)
        if shape.is_quantized:
            use_int4(self)
        self.freq_R = rope_frequencies(shape)  # no buffer, since a cast of the model must not round it
        self.gradient_checkpointing = False
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs
    @deprecate_kwarg("past_key_values", "5.40.0", new_name="cache")
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | dict[str, Tensor] | None = None,
        position_ids: Tensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> MoeModelOutputWithPast:
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds")
        if inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids)
        if use_cache and cache is None:
            cache = DynamicCache(config=self.config)
        if position_ids is None:
            past = 0 if cache is None else cache.get_seq_length()
            position_ids = torch.arange(inputs_embeds.shape[1], device=inputs_embeds.device).unsqueeze(0) + past
        masks = self._masks(inputs_embeds, attention_mask, position_ids, cache)
        if self.freq_R.device != inputs_embeds.device:
            self.freq_R = self.freq_R.to(inputs_embeds.device)
        places_BT = position_ids.expand(inputs_embeds.shape[0], -1)
        rope = rope_table(self.freq_R, places_BT, at_least_fp32(inputs_embeds).dtype)
        hidden_states = inputs_embeds
        for kind, layer in zip(self.config.layer_types or (), self.layers, strict=True):
            hidden_states = layer(
                hidden_states, rope, masks[kind], cache=cache, position_ids=position_ids, use_cache=use_cache, **kwargs
            )
        return MoeModelOutputWithPast(last_hidden_state=self.norm(hidden_states), cache=cache)

    def _masks(
        self,
        inputs_embeds: Tensor,
        attention_mask: Tensor | dict[str, Tensor] | None,
        position_ids: Tensor,
        cache: Cache | None,
    ) -> dict[str, Tensor | None]:
        """The mask of each kind of layer; `generate` may have made them."""
        if isinstance(attention_mask, dict):
            return dict(attention_mask)
        of = {
            "config": self.config,
            "inputs_embeds": inputs_embeds,
            "attention_mask": attention_mask,
            "cache": cache,
            "position_ids": position_ids,
        }
        masks = {FULL: create_causal_mask(**of)}
        if SLIDING in (self.config.layer_types or ()):
            masks[SLIDING] = create_sliding_window_causal_mask(**of)
        return masks


class MobileMoEForCausalLM(MobileMoEPreTrainedModel, GenerationMixin):
    """The whole model. Logits are those of `mobilemoe.MobileMoE`, up to rounding."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012 (transformers' own annotation)

    def __init__(self, config: MobileMoEConfig) -> None:
        super().__init__(config)
        self.model = MobileMoEModel(config)
        self.lm_head: nn.Linear | Int4Linear
        if config.quantization is None:
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        else:
            self.lm_head = Int4Linear(config.hidden_size, config.vocab_size)
            self._tied_weights_keys = {
                f"lm_head.{name}": f"model.embed_tokens.{name}" for name, _ in self.lm_head.named_parameters()
            }
        self.post_init()

    @can_return_tuple
    @deprecate_kwarg("past_key_values", "5.40.0", new_name="cache")
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | dict[str, Tensor] | None = None,
        position_ids: Tensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_router_logits: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> MoeCausalLMOutputWithPast:
        """logits_BTV, and with `labels` the mean loss; -100 stands for a label that does not count.

        With `output_router_logits` each MoE layer's router_logits_NE and `aux_loss`, which is added to the loss with
        the weight `config.router_aux_loss_coef`.
        """
        if output_router_logits is None:
            output_router_logits = self.config.output_router_logits
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            cache=cache,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            output_router_logits=output_router_logits,
            **kwargs,
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits_BTV = self.lm_head(outputs.last_hidden_state[:, kept])
        loss: Tensor | None = None
        aux_loss: Any = None
        if labels is not None:
            loss = self.loss_function(logits_BTV, labels, self.config.vocab_size, **kwargs)
        if outputs.router_logits:
            mask = attention_mask if isinstance(attention_mask, Tensor) and attention_mask.dim() == 2 else None
            experts, active = self.config.num_local_experts, self.config.num_experts_per_tok
            aux_loss = load_balancing_loss_func(outputs.router_logits, experts, active, mask)
            if loss is not None:
                loss = loss + self.config.router_aux_loss_coef * aux_loss.to(loss.device)
        return MoeCausalLMOutputWithPast(
            loss=loss,
            aux_loss=aux_loss,
            logits=logits_BTV,
            cache=outputs.cache,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            router_logits=outputs.router_logits,
        )
