"""Keeps the requests that schemathesis makes up small: it would ask for a hundred texts of the whole context."""

import schemathesis

MOST = {"max_tokens": 3, "max_completion_tokens": 3, "max_output_tokens": 3, "n": 2, "best_of": 2}


@schemathesis.hook
def before_call(context, case, kwargs):
    if isinstance(case.body, dict):
        for name, most in MOST.items():
            if type(case.body.get(name)) is int and case.body[name] > most:
                case.body[name] = most
        limit = "max_output_tokens" if "input" in case.body else "max_tokens"
        if case.body.get(limit) is None and ("messages" in case.body or "input" in case.body):
            case.body[limit] = 3
