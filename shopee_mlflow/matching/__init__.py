"""Which postings of a catalogue show the same product."""
