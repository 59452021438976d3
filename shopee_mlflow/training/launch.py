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
    """Run torchrun in this process: start a command ``nproc`` times, exit with its exit code.

    No port is opened outside the loopback interface. torchrun's own store would listen on all
    interfaces without a password, and torchrun unpickles its contents. So torchrun and the
    processes rendezvous through files in a private folder instead.

    :param arguments: command-line arguments of the command.
    """
    from torch.distributed import run as torchrun
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    # torchrun's default is one thread per process, whatever the number of cores.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // nproc)))
    # The processes print their own errors.
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    # After --, since torchrun would read --nproc as an abbreviation of its own options.
    command = ["-m", "--", __package__.split(".")[0], *arguments]
    try:
        with tempfile.TemporaryDirectory(prefix="shopee_mlflow-") as folder:
            options = [*_private_rendezvous(folder), f"--nproc-per-node={nproc}"]
            torchrun.run(torchrun.parse_args([*options, *command]))
    except ChildFailedError as error:
        code = error.get_first_failure()[1].exitcode
        # A process that was killed has printed nothing.
        if code < 0:
            fail(f"one of {nproc} processes was killed by {signal.Signals(-code).name}")
        sys.exit(code if code > 0 else 1)
    except SignalException:
        sys.exit(_INTERRUPTED)
    sys.exit(0)


def _private_rendezvous(folder: str) -> list[str]:
    """Set the environment for a rendezvous through files; returns the options for torchrun.

    :param folder: a local folder that only this user can read and write.
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
