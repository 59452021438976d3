"""Data: the catalogue, its cleaning and splits, its photos and their batches."""
