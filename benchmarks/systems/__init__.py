"""One file per system; each has ``measure(job)``, which runs in a separate process."""
