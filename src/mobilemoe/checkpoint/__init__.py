"""Models on disk: safetensors files, INT4 packing, the layouts, checkpoint folders and conversions."""

from mobilemoe.checkpoint.container import SafetensorsFile, write_safetensors
from mobilemoe.checkpoint.convert import Differences, KindError, Report, compare, convert
from mobilemoe.checkpoint.folder import Checkpoint
from mobilemoe.checkpoint.layout import Weight, tensor_table, weights
from mobilemoe.checkpoint.synthetic import write_random
from mobilemoe.checkpoint.writing import Format, save_checkpoint

__all__ = [
    "Checkpoint",
    "Differences",
    "Format",
    "KindError",
    "Report",
    "SafetensorsFile",
    "Weight",
    "compare",
    "convert",
    "save_checkpoint",
    "tensor_table",
    "weights",
    "write_random",
    "write_safetensors",
]
