"""The server's routes: those of the protocols, each from its own module, and those about the server and its model."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import FastAPI, Query, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4

from mobilemoe.config import ModelConfig
from mobilemoe.ids import check_ids
from mobilemoe.serve import page
from mobilemoe.serve.body import StrictRoute
from mobilemoe.serve.completions import add_completions
from mobilemoe.serve.demands import chat_ids
from mobilemoe.serve.desk import Desk
from mobilemoe.serve.errors import ApiError, add_handlers
from mobilemoe.serve.guard import Guard
from mobilemoe.serve.messages import add_messages
from mobilemoe.serve.metrics import Counted
from mobilemoe.serve.responses import add_responses
from mobilemoe.serve.scheduler import Scheduler
from mobilemoe.serve.schema import add_schema
from mobilemoe.serve.wire import DetokenizeRequest, TokenizeRequest


def create_app(
    scheduler: Scheduler, name: str, *, api_key: str | None, local_only: bool, aliases: Sequence[str] = ()
) -> FastAPI:
    """The routes for the model that `scheduler` runs: see `Desk` for its names, `Guard` for who may ask."""
    app = FastAPI(title="mobilemoe", docs_url=None, redoc_url=None)  # the pages would load scripts from elsewhere
    app.add_middleware(Guard, api_key=api_key, local_only=local_only)
    app.add_middleware(Counted, metrics=scheduler.metrics)  # the last one added is the outermost
    app.router.route_class = StrictRoute
    add_handlers(app)
    desk = Desk(scheduler, name, aliases)
    add_completions(app, desk)
    add_responses(app, desk)
    add_messages(app, desk)
    _add_server(app, scheduler)
    app.router.routes.extend(page.ROUTES)
    _add_model(app, desk)
    add_schema(app, desk.names, with_key=api_key is not None)
    return app


def _add_server(app: FastAPI, scheduler: Scheduler) -> None:
    @app.get("/health")
    def health() -> JSONResponse:
        running, waiting = scheduler.counts
        status = 200 if scheduler.state == "ready" else 503
        return JSONResponse({"status": scheduler.state, "running": running, "waiting": waiting}, status)

    @app.get("/metrics")
    def metrics() -> Response:
        return Response(scheduler.metrics.text(), media_type=CONTENT_TYPE_PLAIN_0_0_4)


def _add_model(app: FastAPI, desk: Desk) -> None:
    started = int(time.time())

    def described(name: str) -> dict[str, Any]:
        """As OpenAI describes a model and as Anthropic does: their clients pass over each other's fields."""
        found: dict[str, Any] = {"id": name, "object": "model", "created": started, "owned_by": "mobilemoe"}
        created = datetime.fromtimestamp(started, UTC).isoformat()
        found |= {"type": "model", "display_name": name, "created_at": created}
        with suppress(ApiError):  # it is still being loaded
            found["x_mobilemoe"] = _shape(desk.model(name).config)
        return found

    @app.get("/v1/models")
    def models(
        limit: Annotated[int, Query(ge=1, le=1000)] = 1000, after_id: str | None = None, before_id: str | None = None
    ) -> dict[str, Any]:
        """In pages, as Anthropic's client asks for them; OpenAI's takes the whole list."""
        names = [*desk.names]
        if after_id is not None:
            names = names[_index(names, "after_id", after_id) + 1 :]
        if before_id is not None:
            names = names[: _index(names, "before_id", before_id)]
        shown = names[-limit:] if before_id is not None else names[:limit]
        ends = {"first_id": shown[0] if shown else None, "last_id": shown[-1] if shown else None}
        more = {"has_more": len(shown) < len(names)}
        return {"object": "list", "data": [described(name) for name in shown], **ends, **more}

    @app.get("/v1/models/{wanted:path}")
    def one_model(wanted: str) -> dict[str, Any]:
        desk.model(wanted)
        return described(wanted)

    @app.post("/v1/embeddings", include_in_schema=False)
    def embeddings() -> None:
        raise ApiError(
            404,
            "embeddings are not offered: such a model finds texts that belong together worse than counting words does",
            code="not_offered",
        )

    @app.post("/tokenize")
    def tokenize(body: TokenizeRequest) -> dict[str, Any]:
        model = desk.model(body.model)
        if (body.prompt is None) == (body.messages is None):
            raise ApiError(400, "give either a prompt or messages")
        if body.messages is not None:
            ids = chat_ids(model, body.messages)
        else:
            with_begin = body.add_special_tokens and model.tokenizer.bos_id is not None
            ids = model.tokenizer.encode(body.prompt or "", bos=with_begin)
        return {"tokens": ids, "count": len(ids), "max_model_len": model.context}

    @app.post("/detokenize")
    def detokenize(body: DetokenizeRequest) -> dict[str, Any]:
        model = desk.model(body.model)
        if body.tokens:
            check_ids(body.tokens, model.config.vocab_size, len(body.tokens))
        return {"prompt": model.tokenizer.decode(body.tokens, skip_special=False)}


def _index(names: Sequence[str], param: str, name: str) -> int:
    if name not in names:
        raise ApiError(400, f"{param} is {name!r}, which is none of the models listed", param=param)
    return names.index(name)


def _shape(config: ModelConfig) -> dict[str, int]:
    """What the chat page says about a model."""
    return {
        "context": config.max_position_embeddings,
        "layers": config.num_hidden_layers,
        "experts": config.num_local_experts,
        "experts_per_token": config.num_experts_per_tok,
    }
