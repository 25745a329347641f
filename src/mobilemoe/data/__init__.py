"""Text into batches: `sources` read, `stream` shuffles, `mixture` balances, `packing` fills rows, `loader` resumes.

Ahead of training, `prepare` writes the token shards that `tokens` reads, and `chats` makes longer conversations.
"""
