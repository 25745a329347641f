"""MobileMoEConfig: a `config.json` of ours as transformers sees it. What the keys mean is decided by ModelConfig."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedConfig

from mobilemoe.config import ModelConfig
from mobilemoe.config_rules import FULL


class MobileMoEConfig(PreTrainedConfig):
    """The keys of spec 3.3 and 3.5, with the values of MobileMoE-S (spec section 1) as defaults, but plain RoPE.

    Both spellings of RoPE are read, and `rope_parameters` is written. `quantization` is that of an INT4 checkpoint
    (spec 3.1), whose weights stay packed. Keys that nothing is known of are kept and written back.
    `router_aux_loss_coef` weights the loss of Switch Transformers where `output_router_logits` is set; the family is
    trained without one.
    """

    model_type = "mobilemoe"
    keys_to_ignore_at_inference = ("cache",)

    vocab_size: int = 128_256
    hidden_size: int = 768
    intermediate_size: int = 384
    intermediate_size_mlp: int = 1536
    num_hidden_layers: int = 20
    num_attention_heads: int = 12
    num_key_value_heads: int = 4
    head_dim: int = 64
    hidden_act: str = "silu"
    max_position_embeddings: int = 8192
    rms_norm_eps: float = 1e-5
    rope_parameters: dict[str, Any] | None = None
    default_theta = 500_000.0
    num_local_experts: int = 60
    num_experts_per_tok: int = 4
    norm_topk_prob: bool = True
    routed_scaling_factor: float = 2.5
    use_qk_norm: bool = True
    qk_norm: str | None = None
    ffn_type: str = "moe"
    router_score: str = "sigmoid"
    attention_scale: float | None = None
    attention_bias: bool = False
    attention_dropout: float | int = 0.0
    sliding_window: int | None = None
    layer_types: list[str] | None = None
    tie_word_embeddings: bool = True
    quantization: dict[str, Any] | None = None
    initializer_range: float = 0.02
    use_cache: bool = True
    output_router_logits: bool = False
    router_aux_loss_coef: float = 0.0
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        if self.qk_norm is None:
            self.qk_norm = "head" if self.use_qk_norm else "none"
        if self.layer_types is None:
            self.layer_types = [FULL] * self.num_hidden_layers
        super().__post_init__(**kwargs)

    def _validate_llama3_rope_parameters(self, rope_parameters: Any, ignore_keys: Any = None) -> None:
        """Nothing, since ModelConfig checks it: transformers warns of the released scaling, whose bounds are equal."""

    def shape(self) -> ModelConfig:
        """What the model computes; ConfigError for a key that means something that is not supported."""
        return ModelConfig.from_dict(self.to_dict(), "MobileMoEConfig")
