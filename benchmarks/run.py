"""Compare this project with reference implementations on the same photos and weights.

    python benchmarks/run.py --data shop --weights backbone.pth

README.md describes what is measured, and how.
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    # A script has only its own folder on the path.
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from benchmarks.suite import main

    main()
