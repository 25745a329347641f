"""Calls from another thread to an event loop: each is made once and in order, and waits no longer than it may."""

import asyncio
import random
import threading
import time

from mobilemoe.serve import mailbox as module
from mobilemoe.serve.mailbox import mailbox


def from_thread(work):
    thread = threading.Thread(target=work)
    thread.start()
    return thread


def test_every_call_is_made_in_the_order_of_posting():
    async def main():
        box, made, done = mailbox(), [], asyncio.Event()
        chance = random.Random(0)

        def post():
            for number in range(20_000):
                box.post(lambda number=number: made.append(number), urgent=chance.random() < 0.01)
                if chance.random() < 0.001:
                    time.sleep(chance.choice((0.001, 2 * module.GATHER_SECONDS)))
            box.post(done.set)

        thread = from_thread(post)
        await asyncio.wait_for(done.wait(), 30)
        thread.join()
        assert made == list(range(20_000))

    asyncio.run(main())


def test_the_first_call_comes_at_once_the_next_are_gathered_and_urgent_ones_do_not_wait(monkeypatch):
    monkeypatch.setattr(module, "GATHER_SECONDS", 0.5)

    async def main():
        box, made = mailbox(), {}

        async def after(name, seconds, urgent=False):
            """Posts it, and says after so many seconds whether it was made."""
            from_thread(lambda: box.post(lambda: made.setdefault(name, 1), urgent=urgent)).join()
            await asyncio.sleep(seconds)
            return name in made

        assert await after("first", 0.1)
        assert not await after("second", 0.1)
        assert not await after("third", 0.1)
        assert await after("urgent", 0.1, urgent=True)
        assert list(made) == ["first", "second", "third", "urgent"], "an urgent call takes those before it along"
        assert not await after("fifth", 0.1)
        await asyncio.sleep(0.5)
        assert "fifth" in made, "nothing else had to come for it"
        await asyncio.sleep(0.6)
        assert await after("after a silence", 0.1)

    asyncio.run(main())


def test_a_loop_that_has_ended_takes_no_call_and_stops_nobody():
    async def main():
        return mailbox()

    loop = asyncio.new_event_loop()
    box = loop.run_until_complete(main())
    loop.close()
    box.post(lambda: None, urgent=True)
