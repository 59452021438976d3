"""Find the state dict in a weight file, however it was saved."""

from __future__ import annotations

import hashlib
import importlib
import re
import zipfile
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import ModelError
from ..options import expand_path

# Keys under which training scripts store a state dict. Averaged weights come last: they are used
# only if there are no others.
_WRAPPERS = (
    "state_dict",
    "model_state_dict",
    "model",
    "net",
    "network",
    "module",
    "state_dict_ema",
    "model_ema",
    "ema",
)
# Prefixes that DataParallel, torch.compile and Lightning modules add to each name.
_PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "network.")
# A counter that torch.optim.swa_utils.AveragedModel stores next to the weights.
_NO_WEIGHTS = ("n_averaged",)

_SAVE = "Save a state dict with torch.save(model.state_dict(), path)."
_STARTS = (
    (b"version https://git-lfs", "is a Git LFS pointer, not the weights. Run git lfs pull."),
    (b"\x89HDF", f"is an HDF5 file, as Keras saves it, not a PyTorch file. {_SAVE}"),
    (b"\x93NUMPY", f"is a NumPy array, not a PyTorch file. {_SAVE}"),
    (b"\x1f\x8b", "is a gzip archive. Unpack it and name the file inside."),
    (b"{", "is JSON text (often a server's error message). Fetch the weights again."),
)


def load_file(path: Path | str) -> Any:
    """Load a weight file without executing code from a pickle (``weights_only=True``).

    :raises ModelError: when the file has another format, or loading it would run code.
    """
    file = expand_path(path)
    try:
        with file.open("rb") as stream:
            head = stream.read(4096)
        if _is_safetensors(head):
            return _load_safetensors(file)
        if problem := _other_kind(file, head):
            raise ModelError(f"weights={path}: {problem}")
        return torch.load(file, map_location="cpu", weights_only=True)
    except ModelError:
        raise
    except OSError as error:
        raise ModelError(f"weights={path}: cannot be read ({error.strerror or error}).") from error
    except Exception as error:
        raise ModelError(
            f"weights={path}: is not a state dict that can be read safely ({_reason(error)}). "
            f"{_SAVE}"
        ) from error


def unwrap(content: Any) -> tuple[Any, list[str]]:
    """Extract the state dict from a checkpoint and remove the prefixes of wrappers.

    :returns: the state dict, or what was found instead, and a description of each change.
    """
    changes = []
    seen: list[int] = []  # a checkpoint may hold itself
    while id(content) not in seen and (key := _wrapper(content)) is not None:
        seen.append(id(content))
        others = [k for k in _WRAPPERS if k != key and _holds_mapping(content, k)]
        changes.append(f"read from {key!r}" + (f", not from {', '.join(others)}" if others else ""))
        content = content[key]
    if not isinstance(content, Mapping):
        return content, changes
    state = {key: value for key, value in content.items() if key not in _NO_WEIGHTS}
    while state and (prefix := next((p for p in _PREFIXES if _network_begins(state, p)), None)):
        changes.append(f"prefix {prefix!r} removed from the names")
        if others := [key for key in state if not key.startswith(prefix)]:
            changes.append(f"left out {', '.join(others)}")
        state = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    if any("._orig_mod." in str(key) for key in state):
        changes.append("'_orig_mod.' removed from the names")
        state = {str(key).replace("._orig_mod.", "."): value for key, value in state.items()}
    return state, changes


def state_digest(state: Mapping[str, Tensor], size: int = 12) -> str:
    """A fingerprint of the names and values of a state dict, of ``size`` bytes in hexadecimal."""
    digest = hashlib.blake2b(digest_size=size)
    for name, tensor in state.items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _wrapper(content: Any) -> Any:
    """The key that holds a state dict: a usual one, or the only one that does; else None."""
    if usual := next((key for key in _WRAPPERS if _holds_mapping(content, key)), None):
        return usual
    values = content.items() if isinstance(content, Mapping) else ()
    states = [key for key, value in values if _is_state(value)]
    return states[0] if len(states) == 1 else None


def _is_state(content: Any) -> bool:
    return isinstance(content, Mapping) and len(content) > 1 and not unusable_state(content)


def unusable_state(content: Any) -> str:
    """Why content is no state dict of weights; empty if it is one."""
    if not isinstance(content, Mapping) or not content:
        return "holds no state dict (name -> tensor)"
    for name, tensor in content.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            return "holds no state dict (name -> tensor)"
        if tensor.is_meta or tensor.is_quantized or tensor.layout != torch.strided:
            kind = "without values" if tensor.is_meta else "quantized or sparse"
            return f"holds tensors that are {kind}, such as {name}"
    return ""


def _holds_mapping(content: Any, key: str) -> bool:
    return isinstance(content, Mapping) and isinstance(content.get(key), Mapping)


def _network_begins(state: Mapping[Any, Any], prefix: str) -> bool:
    """Whether all names of a network begin with a prefix."""
    if not all(isinstance(name, str) for name in state):
        return False
    others = {name: value for name, value in state.items() if not name.startswith(prefix)}
    return len(others) < len(state) and all(_of_loss_or_metric(*item) for item in others.items())


def _of_loss_or_metric(name: str, value: Any) -> bool:
    """Whether Lightning stores it for a loss (weights of classes) or a metric (counts, sums)."""
    if not isinstance(value, Tensor) or value.ndim > 1:
        return False
    in_loss = any(word in name.partition(".")[0].lower() for word in ("loss", "criterion"))
    return in_loss or value.ndim == 0 or not value.is_floating_point()


def _is_safetensors(head: bytes) -> bool:
    """Whether a file starts as safetensors do: eight bytes of length, then a JSON header."""
    return len(head) > 9 and head[8:9] == b"{" and 2 <= int.from_bytes(head[:8], "little") < 1 << 28


def _load_safetensors(file: Path) -> dict[str, Tensor]:
    if find_spec("safetensors") is None:
        raise ModelError(
            f"weights={file}: is a safetensors file. Install the package safetensors, or save the "
            "weights with torch.save(state_dict, path)."
        )
    library: Any = importlib.import_module("safetensors.torch")
    return dict(library.load_file(file))


def _other_kind(file: Path, head: bytes) -> str:
    """The problem with a file that PyTorch did not save; "" if PyTorch may have saved it."""
    if not head:
        return f"is empty. {_SAVE}"
    for start, problem in _STARTS:
        if head.startswith(start):
            return problem
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head", b"<body")):
        return "is an HTML or XML page (often a server's error page). Fetch the weights again."
    if file.suffix.lower() == ".onnx" or (head[:1] == b"\x08" and b"pytorch" in head[:64]):
        return f"is an ONNX model, which cannot be trained further. {_SAVE}"
    return _other_archive(file) if head.startswith(b"PK\x03\x04") else ""


def _other_archive(file: Path) -> str:
    try:
        with zipfile.ZipFile(file) as archive:
            names = archive.namelist()
    except zipfile.BadZipFile:
        return "is a damaged or incomplete file (its ZIP directory is missing). Fetch it again."
    if any(name.endswith("/constants.pkl") for name in names):
        return f"is a TorchScript model, not a state dict. Load it with torch.jit.load. {_SAVE}"
    if not any(name.endswith("/data.pkl") or name == "data.pkl" for name in names):
        return f"is a ZIP archive of something else ({', '.join(names[:3])}). {_SAVE}"
    return ""


def _reason(error: Exception) -> str:
    """Why a load failed. Messages of torch that advise unsafe loading are replaced."""
    text = str(error).strip()
    # torch writes "GLOBAL module.name", or "Trying to load unsupported GLOBAL module.name".
    if found := re.search(r"GLOBAL ([\w.]+)", text):
        return f"it holds a pickled {found[1]}, and unpickling that could run code"
    if not text or "weights_only" in text or "weights only" in text.lower():
        return f"it is not a file of tensors; {type(error).__name__}"
    return text.splitlines()[0][:200]
