"""The command of lm-evaluation-harness with the model "mobilemoe" registered.

python -m mobilemoe.evaluate --model mobilemoe --model_args pretrained=nano,threads=2 --tasks piqa
"""

import sys

from mobilemoe.errors import MissingExtraError, MobileMoEError


def main() -> None:
    """Runs the command with this process's arguments; one of our errors is one line and its exit status."""
    try:
        try:
            from lm_eval.__main__ import cli_evaluate
        except ModuleNotFoundError:
            raise MissingExtraError("evaluation on benchmarks", "eval") from None
        cli_evaluate()
    except MobileMoEError as fault:
        print(f"mobilemoe: {fault}", file=sys.stderr)
        sys.exit(fault.exit_status)


if __name__ == "__main__":
    main()
