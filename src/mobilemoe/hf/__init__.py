"""MobileMoE in transformers 5: importing this registers it with AutoConfig, AutoModel, AutoModelForCausalLM and
AutoTokenizer, so that checkpoints of the published layout load as any other model's, with no remote code.
"""

import importlib.metadata
import re

from mobilemoe.errors import MissingExtraError, MobileMoEError

try:
    # That of the extra `hf`: 5.17, for one, calls what makes the masks in another way.
    _oldest, _installed = "5.24", importlib.metadata.version("transformers")
    if [int(part) for part in re.findall(r"\d+", _installed)[:2]] < [int(part) for part in _oldest.split(".")]:
        raise MobileMoEError(
            f"MobileMoE in transformers needs its version {_oldest} or newer, but {_installed} is installed: "
            "pip install 'mobilemoe[hf]'"
        )
    from transformers import (
        AutoConfig,
        AutoModel,
        AutoModelForCausalLM,
        AutoTokenizer,
        PreTrainedTokenizerFast,
    )
    from transformers.conversion_mapping import register_checkpoint_conversion_mapping
    from transformers.core_model_loading import Concatenate, MergeModulelist, Transpose, WeightConverter
except ModuleNotFoundError:
    raise MissingExtraError("MobileMoE in transformers", "hf") from None

from mobilemoe.hf.configuration import MobileMoEConfig
from mobilemoe.hf.modeling import MobileMoEForCausalLM, MobileMoEModel, MobileMoEPreTrainedModel

__all__ = ["MobileMoEConfig", "MobileMoEForCausalLM", "MobileMoEModel", "MobileMoEPreTrainedModel"]

AutoConfig.register("mobilemoe", MobileMoEConfig)
AutoModel.register(MobileMoEConfig, MobileMoEModel)
AutoModelForCausalLM.register(MobileMoEConfig, MobileMoEForCausalLM)
AutoTokenizer.register(MobileMoEConfig, fast_tokenizer_class=PreTrainedTokenizerFast)

# BF16 files may hold one matrix [out, in] for each expert (spec 3.2), in place of stacks [E, in, out].
_ONE = "feed_forward.experts.*.{}_proj.weight"
_STACK = "feed_forward.experts.{}_proj"
register_checkpoint_conversion_mapping(
    "mobilemoe",
    [
        WeightConverter(
            [_ONE.format("gate"), _ONE.format("up")],
            _STACK.format("gate_up"),
            [MergeModulelist(dim=0), Concatenate(dim=1), Transpose(1, 2)],
        ),
        WeightConverter(_ONE.format("down"), _STACK.format("down"), [MergeModulelist(dim=0), Transpose(1, 2)]),
    ],
)
