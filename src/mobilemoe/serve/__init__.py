"""The HTTP server: OpenAI's interface to a model on the native engine. Needs the extra `serve`.

`wire.py`: what requests hold, `fields.py`: the parts of them that ask for a structure. `scheduler.py`: the thread that
computes. `answers.py`: what responses hold. `app.py`: the routes. `guard.py`: the key, the host and the size of a
request. `server.py`: the process, from start to drain.
"""
