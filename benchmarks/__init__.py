"""This project compared with reference implementations; see README.md."""
