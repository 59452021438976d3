"""Start several processes that train one model: the option ``nproc``."""

from __future__ import annotations

import logging
import os
import signal
import sys
import tempfile
import uuid
from collections.abc import Sequence
from typing import NoReturn

import psutil

from ..console import fail
from ..modeling.distributed import STORE_VARIABLE

_INTERRUPTED = 130


def start_group(nproc: int, arguments: Sequence[str]) -> NoReturn:
    """Be torchrun: start a command ``nproc`` times, watch over it, and end with its exit code.

    Nothing listens outside of the loopback interface. torchrun's own store would listen on all
    interfaces without a password, and torchrun unpickles what it holds. So torchrun and the
    processes meet in a folder of the user's own instead.

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
    command = ["-m", "--", __package__.split(".")[0], *arguments]
    try:
        with tempfile.TemporaryDirectory(prefix="shopee_mlflow-") as folder:
            options = [*_meet_in(folder), f"--nproc-per-node={nproc}"]
            torchrun.run(torchrun.parse_args([*options, *command]))
    except ChildFailedError as error:
        code = error.get_first_failure()[1].exitcode
        # A process that was killed has printed nothing.
        if code < 0:
            fail(f"one of {nproc} processes was ended by {signal.Signals(-code).name}")
        sys.exit(code if code > 0 else 1)
    except SignalException:
        sys.exit(_INTERRUPTED)
    sys.exit(0)


def _meet_in(folder: str) -> list[str]:
    """Options of torchrun, and environment of the processes, by which no port is opened to others.

    :param folder: on this machine, readable and writable by this user only.
    """
    # Otherwise torchrun opens a second store for the processes.
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    os.environ[STORE_VARIABLE] = f"{folder}/processes"
    for interface, addresses in psutil.net_if_addrs().items():
        if any(address.address == "127.0.0.1" for address in addresses):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
            os.environ.setdefault("NCCL_SOCKET_IFNAME", interface)
            break
    return [
        "--nnodes=1",
        "--local-addr=127.0.0.1",
        f"--rdzv-id={uuid.uuid4()}",
        "--rdzv-backend=c10d",
        "--rdzv-conf=store_type=file",
        f"--rdzv-endpoint={folder}/torchrun",
    ]
