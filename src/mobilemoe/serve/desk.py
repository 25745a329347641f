"""Takes requests for the model: from a request's fields to the texts that the scheduler computes."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import cached_property
from typing import TypeVar

from mobilemoe.errors import MobileMoEError
from mobilemoe.load import Model
from mobilemoe.sampling import Choice
from mobilemoe.serve.answers import Answer, ChatAnswer, CompletionAnswer
from mobilemoe.serve.demands import Demand, chat_demand, completion_demand
from mobilemoe.serve.echo import read_back
from mobilemoe.serve.errors import ApiError, as_api_error
from mobilemoe.serve.order import Order
from mobilemoe.serve.scheduler import Scheduler, Text
from mobilemoe.serve.structure import Grammars
from mobilemoe.serve.wire import MAX_TEXTS, ChatRequest, CompletionRequest

_Kind = TypeVar("_Kind", bound=Answer)


class Desk:
    """The model that `scheduler` runs; clients call it `name`, or one of `aliases`."""

    def __init__(self, scheduler: Scheduler, name: str, aliases: Sequence[str] = ()) -> None:
        self.scheduler, self.name, self.names = scheduler, name, (name, *aliases)
        self._reading = asyncio.Lock()  # prompts are read back one at a time, beside the texts of the queue

    def model(self, wanted: str | None) -> Model:
        """The model, if that is one of its names. ApiError 404 if not, 503 while it is being loaded."""
        model = self.scheduler.model
        if wanted is not None and wanted not in self.names:
            raise ApiError(
                404, f"there is no model {wanted!r} here, only {self.name!r}", param="model", code="model_not_found"
            )
        return model

    async def chat(self, body: ChatRequest) -> tuple[Order, ChatAnswer]:
        """Puts a conversation into the queue, with what collects its answer. ApiError for what is not offered."""
        model = self.model(body.model)
        self.scheduler.check_open()
        demand = await asyncio.to_thread(chat_demand, model, self._grammars, body)
        return self._order(body, model, demand, ChatAnswer)

    async def count(self, body: ChatRequest) -> int:
        """The tokens of a conversation's prompt."""
        demand = await asyncio.to_thread(chat_demand, self.model(body.model), self._grammars, body)
        return len(demand.prompts[0])

    async def complete(self, body: CompletionRequest) -> tuple[Order, CompletionAnswer]:
        """As `chat`, for texts that are continued."""
        model = self.model(body.model)
        self.scheduler.check_open()
        demand = await asyncio.to_thread(completion_demand, model, self._grammars, body)
        order, answer = self._order(body, model, demand, CompletionAnswer)
        answer.keep_best(body.n, body.copies)
        if body.echo and body.logprobs is None:
            answer.echo([[Choice(token) for token in ids] for ids in demand.prompts], body.writes_nothing)
        elif body.echo:

            async def prepare() -> None:
                async with self._reading:
                    read = [await read_back(model, ids, body.logprobs or 0) for ids in demand.prompts]
                answer.echo(read, body.writes_nothing)

            order.prepare = prepare
        return order, answer

    @cached_property
    def _grammars(self) -> Grammars:
        model = self.scheduler.model
        return Grammars(model.tokenizer, model.config.vocab_size, model.stop_ids)

    def _order(
        self,
        body: ChatRequest | CompletionRequest,
        model: Model,
        demand: Demand,
        kind: type[_Kind],
    ) -> tuple[Order, _Kind]:
        logprobs, routing = body.wanted_logprobs(), body.x_mobilemoe.routing
        warnings = body.warnings() + demand.warnings()
        if routing and not model.config.is_moe:
            routing = False
            warnings.append("routing is ignored: the model has no experts")
        if len(demand.prompts) * body.copies > MAX_TEXTS:
            raise ApiError(400, f"n for each prompt makes more than {MAX_TEXTS} texts", param="n")
        texts: list[Text] = []
        try:
            for ids in demand.prompts:
                most = model.fitting(ids, body.most_tokens(model.context))
                for number in range(body.copies):
                    sampling = body.sampling(number)
                    sampling.check_for(model.config.vocab_size, logprobs)
                    writer = model.writer(most, body.stop)
                    guide = None if demand.structure is None else demand.structure.guide()
                    texts.append(Text(len(texts), ids, writer, most, sampling, logprobs, guide, routing))
        except MobileMoEError as fault:
            raise as_api_error(fault, type(body).model_fields) from None
        answer = kind(
            self.name,
            model.tokenizer,
            count=len(texts),
            answers=body.copies,
            prompt_tokens=sum(map(len, demand.prompts)),
            with_logprobs=body.shows_logprobs,
            with_routing=routing,
            stop_ids=model.stop_ids,
            warnings=warnings,
            form=demand.form,
        )
        return Order(self.scheduler, [] if body.writes_nothing else texts), answer
