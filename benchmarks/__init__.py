"""Ours beside honest references; see README.md."""
