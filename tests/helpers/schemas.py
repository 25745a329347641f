"""JSON schemas to hold a model to: those of the types of OpenAI's client, and made ones over the keywords."""

import importlib
import inspect
import pkgutil
import random
from collections.abc import Iterator
from typing import Any

import jsonschema
import openai.types
import pydantic

Schema = dict[str, Any]


def real_schemas(count: int) -> Iterator[Schema]:
    """Those of `count` of the client's 2,700 types, evenly taken from all of them in the order of their names."""
    found = {}
    for module in pkgutil.walk_packages(openai.types.__path__, "openai.types."):
        for name, kind in vars(importlib.import_module(module.name)).items():
            if inspect.isclass(kind) and issubclass(kind, pydantic.BaseModel) and kind.__module__ == module.name:
                found[f"{module.name}.{name}"] = kind
    for name in sorted(found)[:: len(found) // count][:count]:
        yield found[name].model_json_schema()


def made_schemas(seed: int) -> Iterator[Schema]:
    """An endless row of schemas over the keywords that llguidance follows, nested up to three deep."""
    draw = random.Random(seed)
    while True:
        yield _any(draw, 3)


def fits(value: Any, schema: Schema) -> bool:
    return jsonschema.Draft202012Validator(schema).is_valid(value)


def _any(draw: random.Random, depth: int) -> Schema:
    leaves = [_string, _integer, _number, _enum, _const, _plain]
    nests = [_object, _object, _array, _tuple, _any_of, _all_of, _reference]
    return draw.choice(leaves + nests * 2 if depth else leaves)(draw, depth - 1)


def _string(draw: random.Random, _: int) -> Schema:
    least = draw.randrange(3)
    pattern = draw.choice(["^[a-f]{2,4}$", "^(yes|no)$", "^[A-Z][a-z]* [0-9]+$", "^\\d{3}-\\d{4}$", "b+c"])
    form = draw.choice(["date", "time", "date-time", "email", "uuid", "ipv4", "hostname"])
    rules = [
        {},
        {"minLength": least, "maxLength": least + draw.randrange(1, 12)},
        {"pattern": pattern},
        {"format": form},
    ]
    return {"type": "string", **draw.choice(rules)}


def _integer(draw: random.Random, _: int) -> Schema:
    low = draw.randrange(-200, 200)
    rules = [
        {},
        {"minimum": low},
        {"exclusiveMinimum": low, "exclusiveMaximum": low + draw.randrange(2, 500)},
        {"minimum": low, "maximum": low + draw.randrange(100)},
        {"multipleOf": draw.choice([2, 5, 10]), "minimum": 0, "maximum": 1000},
    ]
    return {"type": "integer", **draw.choice(rules)}


def _number(draw: random.Random, _: int) -> Schema:
    low = draw.randrange(-50, 50) / 4
    rules = [{}, {"minimum": low}, {"minimum": low, "maximum": low + 1.25}, {"exclusiveMaximum": low}]
    return {"type": "number", **draw.choice(rules)}


def _value(draw: random.Random) -> Any:
    return draw.choice(
        [None, True, False, 0, -3, 2.5, "", "two words", 'a "quote"', "Ünï\n", [], [1, "x"], {}, {"k": None}]
    )


def _enum(draw: random.Random, _: int) -> Schema:
    return {"enum": [_value(draw) for _ in range(draw.randrange(1, 5))]}


def _const(draw: random.Random, _: int) -> Schema:
    return {"const": _value(draw)}


def _plain(draw: random.Random, _: int) -> Schema:
    return draw.choice(
        [{"type": "boolean"}, {"type": "null"}, {"type": ["integer", "null"]}, {"type": ["string", "boolean"]}]
    )


def _names(draw: random.Random) -> list[str]:
    return draw.sample(["id", "name", "tags", "a b", "größe", "x-1", "kind", "", '"', "0"], draw.randrange(1, 5))


def _object(draw: random.Random, depth: int) -> Schema:
    names = _names(draw)
    schema: Schema = {
        "type": "object",
        "properties": {name: _any(draw, depth) for name in names},
        "required": draw.sample(names, draw.randrange(len(names) + 1)),
    }
    extra = draw.choice(["none", "none", "none", "any", "typed", "pattern"])
    if extra == "none":
        schema["additionalProperties"] = False
    elif extra == "typed":
        schema["additionalProperties"] = _integer(draw, 0)
    elif extra == "pattern":
        schema |= {"patternProperties": {"^z[0-9]$": _integer(draw, 0)}, "additionalProperties": False}
    return schema


def _array(draw: random.Random, depth: int) -> Schema:
    least = draw.randrange(3)
    bounds = draw.choice([{}, {"minItems": least, "maxItems": least + draw.randrange(4)}, {"maxItems": 2}])
    return {"type": "array", "items": _any(draw, depth), **bounds}


def _tuple(draw: random.Random, depth: int) -> Schema:
    items = [_any(draw, depth) for _ in range(draw.randrange(1, 4))]
    rest = draw.choice([False, {"type": "boolean"}])
    return {"type": "array", "prefixItems": items, "items": rest, "minItems": draw.randrange(len(items) + 1)}


def _any_of(draw: random.Random, depth: int) -> Schema:
    return {"anyOf": [_any(draw, depth) for _ in range(draw.randrange(1, 4))]}


def _all_of(draw: random.Random, depth: int) -> Schema:
    parts = [
        {"properties": {name: _any(draw, 0)}, "required": [name]}
        for name in draw.sample(["one", "two", "three"], draw.randrange(1, 4))
    ]
    return {"type": "object", "allOf": parts}


def _reference(draw: random.Random, depth: int) -> Schema:
    node = {
        "type": "object",
        "properties": {"value": _any(draw, 0), "next": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/node"}]}},
        "required": ["value", "next"],
        "additionalProperties": False,
    }
    # A reference is read from the root of a document, so a nested one is inlined by its id.
    return {"$id": f"urn:node:{draw.randrange(10**9)}", "$defs": {"node": node}, "$ref": "#/$defs/node"}
