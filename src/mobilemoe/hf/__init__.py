"""MobileMoE in transformers 5: importing this registers it with AutoConfig, AutoModel, AutoModelForCausalLM and
AutoTokenizer, so that checkpoints of the published layout load as any other model's, with no remote code.
"""

from mobilemoe.errors import MissingExtraError

try:
    from transformers import (
        AutoConfig,
        AutoModel,
        AutoModelForCausalLM,
        AutoTokenizer,
        PreTrainedTokenizerFast,
    )
except ModuleNotFoundError:
    raise MissingExtraError("MobileMoE in transformers", "hf") from None

from mobilemoe.hf.configuration import MobileMoEConfig
from mobilemoe.hf.modeling import MobileMoEForCausalLM, MobileMoEModel, MobileMoEPreTrainedModel

__all__ = ["MobileMoEConfig", "MobileMoEForCausalLM", "MobileMoEModel", "MobileMoEPreTrainedModel"]

AutoConfig.register("mobilemoe", MobileMoEConfig)
AutoModel.register(MobileMoEConfig, MobileMoEModel)
AutoModelForCausalLM.register(MobileMoEConfig, MobileMoEForCausalLM)
AutoTokenizer.register(MobileMoEConfig, fast_tokenizer_class=PreTrainedTokenizerFast)
