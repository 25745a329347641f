"""The compiled engine (native/python/binding.cpp). O outputs of a call, L layers, A active experts, V vocabulary."""

from collections.abc import Callable, Mapping
from collections.abc import Sequence as _List
from typing import Literal

import numpy as np
import numpy.typing as npt

_Ids = _List[int] | npt.NDArray[np.int32]
_Experts = _List[npt.NDArray[np.int32] | None]

class NativeError(Exception):
    code: Literal["usage", "config", "file", "memory", "full", "numerics"]

class Engine:
    """An open model. One call computes at a time, without the interpreter's lock: other threads wait for their turn."""

    @staticmethod
    def open(
        path: str,
        threads: int = 0,
        kv: str = "int8",
        fp32: bool = False,
        max_memory: int = 0,
        *,
        experts_per_token: int = 0,
        cache_prior: float = 0.0,
        always_top: int = -1,
        cached_experts: int = 0,
        capacity: float = 0.0,
        skip: str = "pair",
    ) -> Engine:
        """`path`: an engine file, or a checkpoint's folder; `kv`: int8, f16 or f32; threads 0: one for each core.

        max_memory: bytes that the whole process may come to have; routed experts for which there is no room are read
        from the engine file when they are needed. 0: no limit, and all of the file is mapped. The others are those of
        `mobilemoe.routing.Routing`, where 0 means off, and -1 half of a token's experts.
        """

    @property
    def vocab_size(self) -> int: ...
    @property
    def layers(self) -> int: ...
    @property
    def context(self) -> int: ...
    @property
    def experts(self) -> int: ...
    @property
    def active_experts(self) -> int: ...
    @property
    def file_bytes(self) -> int: ...
    @property
    def config_json(self) -> str: ...
    @property
    def fingerprint(self) -> bytes:
        """The hash of the config and weights of the INT4 checkpoint that computes."""

    @property
    def origin(self) -> bytes:
        """The hash of the checkpoint that was rounded to that one; equal to `fingerprint` where nothing was rounded."""

    @property
    def threads(self) -> int: ...
    @property
    def isa(self) -> str: ...
    @property
    def room(self) -> int:
        """Bytes that the process can still take under max_memory, with as few experts in memory as possible."""

    @property
    def expert_use(self) -> dict[str, int]:
        """How often experts were in memory when they were wanted (hits), on their way (ahead) or neither (misses).

        And bytes_read so far, how many of the experts there may be in memory (places), of how many (experts), and
        expert_bytes of one of them. All are 0 without max_memory.
        """

    @property
    def routing_use(self) -> dict[str, int]:
        """Chosen experts that the imitated cache had (hits) or not (misses); pairs of prompts under a capacity, of a
        token and one of its experts, and how many of these were skipped.
        """

    @property
    def kv(self) -> str: ...
    @property
    def fp32(self) -> bool: ...
    def new_sequence(self, capacity: int = 0) -> Sequence:
        """An empty sequence of at most `capacity` tokens; 0 stands for the context."""

    def kv_bytes(self, tokens: int) -> int:
        """The memory that the keys and values of `tokens` tokens of one sequence fill."""

    def session_tokens(self, path: str) -> list[int]:
        """The tokens of a saved sequence of this model; only `Sequence.load` can tell whether the file is whole."""

    def forward(
        self,
        requests: _List[tuple[Sequence, _Ids, int]],
        forced_experts: _Experts | None = None,
        chosen_experts: _Experts | None = None,
    ) -> npt.NDArray[np.float32]:
        """Appends the ids of each request to its sequence: logits_OV of the last `int` positions of each.

        Experts are one entry for each request, None or an array [ids, L, A]: `forced_experts` are taken in place of
        the router's choice, into `chosen_experts` the choice is written.
        """

    def load_draft(self, path: str) -> None:
        """Takes the draft head in this file to guess with; before there are sequences."""

    def new_speculation(self, how: str) -> Speculation:
        """`how`: auto, lookup or draft."""

    @property
    def drafts(self) -> tuple[int, int, int]:
        """Passes of a text with drafts in them, drafts, and how many of these were right."""

    def draft(self, texts: _List[tuple[Speculation, Sequence, int]], rows: int) -> list[list[int]]:
        """For a pass that appends one token to each text and has `rows` rows: the guesses worth appending behind it.

        A text is its speculation, its sequence and that token.
        """

    def choose(
        self,
        texts: _List[
            tuple[Sampler, npt.NDArray[np.float32], bool, int, npt.NDArray[np.uint32] | None, Speculation | None]
        ],
    ) -> list[list[tuple[int, float, list[tuple[int, float]]] | NativeError]]:
        """Chooses the next tokens of several texts at the same time, each with a sampler of its own.

        A text is its sampler, logits_RV behind its token and its R - 1 drafts, whether to give the log-probability, how
        many of the likeliest tokens, bits_V of the tokens that may be chosen, None for all, and its speculation, None
        without drafts. The result are a token, its log-probability under the model itself and the likeliest tokens with
        theirs, one for each row up to the first whose draft is wrong; its sampler's error ends them.
        """

    def score(
        self, requests: _List[tuple[Sequence, _Ids, int]], targets: _Ids
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
        """Like `forward`, but returns the log-probability of each of O targets, and whether no token is likelier."""

class Sequence:
    """One text in progress; keeps its engine alive."""

    @property
    def length(self) -> int: ...
    @property
    def capacity(self) -> int: ...
    @property
    def tokens(self) -> list[int]: ...
    def truncate(self, length: int) -> None: ...
    def copy_from(self, other: Sequence, length: int) -> None: ...
    def save(self, path: str) -> None: ...
    def load(self, path: str) -> None: ...

class Sampler:
    def __init__(
        self,
        vocab_size: int,
        *,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        presence_penalty: float = 0.0,
        frequency_penalty: float = 0.0,
        seed: int = 0,
        logit_bias: Mapping[int, float] = {},
    ) -> None: ...
    def see(self, tokens: _Ids) -> None:
        """The prompt, for the repetition penalty."""

class Speculation:
    """The drafts of one text."""

def available_kernels() -> list[str]:
    """The instruction sets that this build has and this machine can run, best first."""

def allowed_cores() -> int:
    """How many cores this process may use."""

def default_threads() -> int:
    """How many threads an engine has unless told otherwise."""

ENGINE_VERSION: int  # of the engine files that this build reads
INTERFACE_VERSION: int  # of this module

def repack(
    folder: str, path: str, progress: Callable[[int, int], object] | None = None, origin: bytes | None = None
) -> None:
    """Writes the checkpoint in `folder` as the engine file `path`; an exception of progress(done, total) stops it.

    `origin` is the fingerprint of what `folder` was rounded from.
    """

def verify(path: str) -> None:
    """Reads all of an engine file; NativeError unless every byte is the one that was written."""

def machine_speed(threads: int) -> tuple[float, float]:
    """Bytes read and int8 multiply-adds (0: not known) per second, by all threads; takes about 2 s and 1 GiB."""

def checkpoint_fingerprint(folder: str) -> bytes:
    """The hash of the config and the weights in `folder`, INT4 or not; reads all of them."""
