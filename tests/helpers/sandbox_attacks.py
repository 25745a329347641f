"""Programs for the sandbox; where it cannot be built, whoever imports this is skipped."""

import pytest

from mobilemoe.evaluate.tasks.sandbox.run import Outcome, SandboxError, run_code, sandbox_strength

try:
    sandbox_strength()
except SandboxError as reason:
    pytest.skip(str(reason), allow_module_level=True)


def attack(program: str, *, seconds: float = 60, memory_bytes: int = 2**28) -> Outcome:
    return run_code(program, seconds=seconds, memory_bytes=memory_bytes)
