"""The engine: a queue of work, a batcher under a token budget, and one device thread."""
