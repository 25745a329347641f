"""The native engine's Python face: open models, sessions, continuous batches, log-likelihoods, and the engine files.

from mobilemoe.engine import Engine
engine = Engine(folder)
session = engine.session()
logits_V = session.append(ids)
"""

from mobilemoe.cache import cache_folder
from mobilemoe.engine.batch import Batch
from mobilemoe.engine.cache import ENGINE_FILE, engine_files, has_engine_file, is_whole, write_engine_folder
from mobilemoe.engine.engine import Activations, Engine, KvCache, instruction_sets
from mobilemoe.engine.session import Session

__all__ = [
    "ENGINE_FILE",
    "Activations",
    "Batch",
    "Engine",
    "KvCache",
    "Session",
    "cache_folder",
    "engine_files",
    "has_engine_file",
    "instruction_sets",
    "is_whole",
    "write_engine_folder",
]
