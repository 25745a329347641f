"""The exceptions of the package: one sentence that says what is wrong and how to mend it.

A verb prints the sentence and exits with `exit_status`; no user ever sees a traceback for one of these.
"""


class MobileMoEError(Exception):
    """Base of every error that a user can mend."""

    exit_status = 1


class UsageError(MobileMoEError):
    """The call itself is wrong: an option, a value or a combination that cannot mean anything."""

    exit_status = 2


class ConfigError(MobileMoEError):
    """A model config, recipe or preset breaks a rule; the text names field, value and rule."""


class CheckpointError(MobileMoEError):
    """A checkpoint file or folder is damaged, incomplete or not what its config says."""


class TokenizerError(MobileMoEError):
    """A tokenizer or chat template is missing, damaged or refuses its input."""


class DataError(MobileMoEError):
    """A training or evaluation source cannot be read, or holds no usable text."""


class TrainError(MobileMoEError):
    """A training run cannot start, continue or resume."""


class MachineError(TrainError):
    """A training run stopped for what is not its own fault: no room on the disk, or not enough memory."""


class MissingExtraError(MobileMoEError):
    """A package of an optional extra is not installed."""

    def __init__(self, what: str, extra: str) -> None:
        super().__init__(f"{what} needs an extra that is not installed: pip install 'mobilemoe[{extra}]'")


class ModelNotFoundError(MobileMoEError):
    """No folder, bundled model or Hub model has this name."""
