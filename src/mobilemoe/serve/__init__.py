"""The HTTP server: OpenAI's interface to a model on the native engine. Needs the extra `serve`.

`app.py`: the routes; `completions.py`: those of OpenAI's completions, `responses.py`: of its Responses API,
`messages.py`: of Anthropic's Messages.
`wire.py`, `responses_wire.py`, `messages_wire.py`: what requests hold, `fields.py`: what of it asks for a structure.
`desk.py`: from a request to the texts that it asks for, with `demands.py`: their prompts and their grammars, and
`echo.py`: prompts that are given back. `structure.py`: grammars over the model's tokens, `bounds.py`: those that are
refused. `tools.py`, `calls.py`: calls of tools, asked for and read. `scheduler.py`: the thread that computes.
`memory.py`: how much it may keep. `order.py`, `mailbox.py`: the way of an answer back to its client. `answers.py`: what
answers hold. `page.py`: the chat page, whose files are in `assets/`.
`connection.py`: clients that are slow or many. `guard.py`: the key, hosts, and the size and type of a request.
`body.py`: its JSON. `schema.py`, `answers_wire.py`: what the server says about itself to generators of clients.
`metrics.py`, `pace.py`: what is counted and estimated.
`server.py`: the process, from start to drain.
"""
