"""Start several processes that train one model: the option ``nproc``."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Sequence
from typing import NoReturn

from ..console import fail

_INTERRUPTED = 130


def start_group(nproc: int, arguments: Sequence[str]) -> NoReturn:
    """Be torchrun: start a command ``nproc`` times, watch over it, and end with its exit code.

    :param arguments: of the command, as they were cli_options.
    """
    from torch.distributed import run as torchrun
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    # torchrun's default is one thread a process, whatever the machine has.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // nproc)))
    # The processes print their own errors.
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    # After --, since torchrun would take --nproc for an abbreviation of its own options.
    options = ["--standalone", "--nproc-per-node", str(nproc), "-m", "--"]
    command = [*options, __package__.split(".")[0], *arguments]
    try:
        torchrun.run(torchrun.parse_args(command))
    except ChildFailedError as error:
        code = error.get_first_failure()[1].exitcode
        # A process that was killed has printed nothing.
        if code < 0:
            fail(f"one of {nproc} processes was ended by {signal.Signals(-code).name}")
        sys.exit(code if code > 0 else 1)
    except SignalException:
        sys.exit(_INTERRUPTED)
    sys.exit(0)
