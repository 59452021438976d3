"""A search over training options: its space, its queue of trials, its storage, its result."""
