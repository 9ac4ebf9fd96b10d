"""The tensors of a model folder by name, whatever files they lie in: safetensors in one file or several, torch's pickles."""

import json
import math
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypedDict

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open

from bert_jax.errors import UserError, plain
from bert_jax.files import decode_json, open_regular, read_json, whole_file

WEIGHTS, INDEX, PICKLE = "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin"
_BUFFERS = ("position_ids", "token_type_ids")  # counters, which old versions of transformers stored with the weights
# Bytes; the largest published encoder has 60 kB.
LONGEST_HEADER = 1 << 24
_TYPES = {"F32": np.dtype(np.float32), "F16": np.dtype(np.float16), "BF16": np.dtype(jnp.bfloat16)}


class _Index(TypedDict):
    weight_map: dict[str, str]


class Tensors:
    """Names and shapes at once, the numbers when they are asked for."""

    def __init__(self) -> None:
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._readers: dict[str, Callable[[], np.ndarray]] = {}

    @classmethod
    def open(cls, folder: Path) -> "Tensors":
        """The tensors of a folder. Raises UserError where there are none, or files that cannot be read."""
        tensors = cls()
        if (folder / INDEX).exists():
            for name in sorted(_index(folder / INDEX)):
                tensors._add_safetensors(folder / name)
        elif (folder / WEIGHTS).exists():
            tensors._add_safetensors(folder / WEIGHTS)
        elif (folder / PICKLE).exists():
            open_regular(folder / PICKLE).close()
            tensors._add_pickle(folder / PICKLE)
        else:
            raise UserError(f"{folder}: no {WEIGHTS} in it; save the model with save_pretrained")
        return tensors

    def read(self, name: str) -> np.ndarray:
        """A tensor in float32. Raises UserError for numbers that are not finite."""
        array = np.asarray(self._readers[name](), np.float32)
        if not np.isfinite(array).all():
            raise UserError(f"tensor {name}: holds numbers that are not finite; get the file again")
        return array

    def rename(self, names: Mapping[str, str]) -> None:
        """Gives every tensor another name. Raises UserError if two get the same."""
        if len(set(names.values())) < len(names):
            twice = [new for new, number in Counter(names.values()).items() if number > 1]
            raise UserError(f"tensor {twice[0]}: stored under two names; get the file again")
        self.shapes = {names[name]: shape for name, shape in self.shapes.items()}
        self._readers = {names[name]: reader for name, reader in self._readers.items()}

    def add(self, name: str, shape, dtype: str, reader: Callable[[], np.ndarray]) -> None:
        """Adds a tensor of a type as safetensors names it. Raises UserError for one that is no float."""
        if name.endswith(_BUFFERS):
            return
        if dtype not in _TYPES:
            raise UserError(f"tensor {name}: of type {dtype}; only float32, float16 and bfloat16 are supported")
        if name in self.shapes:
            raise UserError(f"tensor {name}: in two of the files; get them again")
        self.shapes[name] = tuple(shape)
        self._readers[name] = reader

    def _add_safetensors(self, path: Path) -> None:
        header, start = _header(path)
        for name, entry in header.items():
            offset = start + entry["data_offsets"][0]
            # Not by the library, which maps the file into memory: its pages would count twice beside the arrays.
            self.add(name, entry["shape"], entry["dtype"], partial(_from_file, path, offset, entry))

    def _add_pickle(self, path: Path) -> None:
        try:
            import torch
        except ImportError:
            raise UserError(
                f"{path}: a pickle, which only torch reads safely; install torch, or save the model as safetensors"
            ) from None
        types = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
        try:
            is_zip = zipfile.is_zipfile(path)  # torch's format since 2020, which can be read as it is asked for
            loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
        except Exception as error:  # of the pickle module, zipfile, torch ...
            first_line = str(error).splitlines()[0]
            raise UserError(f"{path}: no file of weights alone ({first_line}); save the model as safetensors") from None
        if not isinstance(loaded, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in loaded.values()):
            raise UserError(f"{path}: holds other things than tensors by name; save the model as safetensors")
        for name, tensor in loaded.items():
            dtype = types.get(tensor.dtype, str(tensor.dtype))
            self.add(name, tensor.shape, dtype, partial(_numpy, tensor))


def _header(path: Path) -> tuple[dict[str, Any], int]:
    """Returns the entries of a safetensors file, and where its numbers begin (see `write_safetensors`).

    Raises:
      UserError: the file is missing, truncated or not safetensors.
    """
    with open_regular(path) as file:
        size = int.from_bytes(file.read(8), "little")
        if size > LONGEST_HEADER:
            raise UserError(f"{path}: not safetensors, or a header of {size:,} bytes; get it again")
        content = file.read(size)
    try:
        with safe_open(path, framework="np"):  # checks the header: types, shapes, and that no bytes are used twice
            pass
        header = decode_json(content, dict[str, Any])
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path}: missing, truncated or not safetensors ({error}); get it again") from None
    header.pop("__metadata__", None)
    return header, 8 + size


def _from_file(path: Path, offset: int, entry: dict) -> np.ndarray:
    shape = entry["shape"]
    return np.fromfile(path, _TYPES[entry["dtype"]], math.prod(shape), offset=offset).reshape(shape)


def _numpy(tensor) -> np.ndarray:
    return tensor.float().numpy()


def _index(path: Path) -> set[str]:
    """Returns the names of the files in an index. Raises UserError for one that leads out of the folder."""
    files = set(read_json(path, _Index)["weight_map"].values())
    for name in files:
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise UserError(f"{path}: {plain(name, 80)!r} is not the name of a .safetensors file; get it again")
    return files


def write_safetensors(
    path: Path, shapes: Mapping[str, tuple[int, ...]], tensors: Iterable[tuple[str, np.ndarray]]
) -> None:
    """Writes float32 tensors as they come, in the order of `shapes`: the library's own writer wants all in memory at once.

    The format is at github.com/huggingface/safetensors: the header's length (8 bytes), the header (JSON), the numbers.
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # the numbers begin at a multiple of 8 bytes
    with whole_file(path, binary=True) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, array in tensors:
            assert array.shape == shapes[name] and array.dtype == np.float32, name
            np.ascontiguousarray(array).tofile(file)
