"""MobileMoE: plan, train, quantise, evaluate and run small mixture-of-experts language models on devices.

import mobilemoe
model = mobilemoe.load("nano")
print(model.generate("Once upon a time", max_new_tokens=64))
"""

from typing import TYPE_CHECKING, Any

from mobilemoe.config import ModelConfig
from mobilemoe.errors import MissingExtraError
from mobilemoe.load import load
from mobilemoe.routing import Routing

if TYPE_CHECKING:
    from mobilemoe.model import MobileMoE

__version__ = "0.1.0"
__all__ = ["MobileMoE", "ModelConfig", "Routing", "load"]


def __getattr__(name: str) -> Any:
    """MobileMoE, the PyTorch model, is imported when it is asked for: the package itself needs no torch."""
    if name == "MobileMoE":
        try:
            from mobilemoe.model import MobileMoE
        except ModuleNotFoundError:
            raise MissingExtraError("the PyTorch model", "torch") from None
        return MobileMoE
    raise AttributeError(f"module 'mobilemoe' has no attribute {name!r}")
