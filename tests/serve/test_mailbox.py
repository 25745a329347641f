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


class StillLoop(asyncio.SelectorEventLoop):
    """Its time stands still until a test lets it pass."""

    now = 0.0

    def time(self):
        return self.now


def test_the_first_call_comes_at_once_the_next_are_gathered_and_urgent_ones_do_not_wait():
    loop = StillLoop()

    async def turns():
        for _ in range(5):
            await asyncio.sleep(0)

    async def main():
        box, made = mailbox(), []

        async def is_made(name, urgent=False):
            """Posts it, and says whether it was made without any time passing."""
            from_thread(lambda: box.post(lambda: made.append(name), urgent=urgent)).join()
            await turns()
            return name in made

        async def pass_time(seconds):
            loop.now += seconds
            await turns()

        assert await is_made("first")
        assert not await is_made("second")
        await pass_time(module.GATHER_SECONDS / 2)
        assert not await is_made("third")
        assert await is_made("urgent", urgent=True)
        assert made == ["first", "second", "third", "urgent"], "an urgent call takes those before it along"
        assert not await is_made("fifth")
        await pass_time(module.GATHER_SECONDS * 0.9)
        assert "fifth" not in made
        await pass_time(module.GATHER_SECONDS * 0.2)
        assert "fifth" in made, "nothing else had to come for it"
        await pass_time(module.GATHER_SECONDS * 1.1)
        assert await is_made("after a silence")

    loop.run_until_complete(main())
    loop.close()


def test_a_loop_that_has_ended_takes_no_call_and_stops_nobody():
    async def main():
        return mailbox()

    loop = asyncio.new_event_loop()
    box = loop.run_until_complete(main())
    loop.close()
    box.post(lambda: None, urgent=True)
