"""Evaluation of the very files that ship.

Importing this package tells lm-evaluation-harness, where it is installed, of the model "mobilemoe": by a name that is
resolved when it is asked for, so that nothing heavy is loaded here.
"""

try:
    from lm_eval.api.registry import model_registry
except ImportError:  # the extra "eval" is not installed, and bits per byte need none of it
    pass
else:
    model_registry.register("mobilemoe", target="mobilemoe.evaluate.models.harness:HarnessModel")
