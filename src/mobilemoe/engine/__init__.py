"""The native engine from Python: open models, sessions, continuous batches, log-likelihoods, and engine files.

from mobilemoe.engine import Engine
engine = Engine(folder)
session = engine.session()
logits_V = session.append(ids)
"""

from mobilemoe.checkpoint.folder import ENGINE_FILE
from mobilemoe.engine.batch import Batch
from mobilemoe.engine.conversation import Conversation
from mobilemoe.engine.core import Activations, Drafts, KvCache, Session, Speculate
from mobilemoe.engine.engine import Engine, instruction_sets
from mobilemoe.engine.engine_file_cache import engine_files, has_engine_file, is_whole, write_engine_folder
from mobilemoe.user_cache import cache_folder

__all__ = [
    "ENGINE_FILE",
    "Activations",
    "Batch",
    "Conversation",
    "Drafts",
    "Engine",
    "KvCache",
    "Session",
    "Speculate",
    "cache_folder",
    "engine_files",
    "has_engine_file",
    "instruction_sets",
    "is_whole",
    "write_engine_folder",
]
