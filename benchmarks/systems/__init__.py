"""One file a system; each has ``measure(job)``, which runs in a process of its own."""
