"""Ours beside honest references, on the same images and weights, in one command.

    python benchmarks/run.py --data shop --weights backbone.pth

See README.md for what is measured, and how.
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    # A script knows only its own folder.
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from benchmarks.suite import main

    main()
