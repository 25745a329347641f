"""Evaluation of the files that are released, and not of the model that they were exported from.

Importing this package registers the model "mobilemoe" with lm-evaluation-harness, where that is installed. It is
registered by a name that is resolved at first use, so that the import loads nothing heavy.
"""

try:
    from lm_eval.api.registry import model_registry
except ImportError:  # the extra "eval" is not installed, and bits per byte need none of it
    pass
else:
    model_registry.register("mobilemoe", target="mobilemoe.evaluate.models.harness:HarnessModel")
