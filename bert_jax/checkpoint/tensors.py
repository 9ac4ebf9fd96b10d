"""The tensors of a model folder by name, whatever files they lie in: safetensors in one file or several, torch's pickles."""

import json
import math
import zipfile
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open

from bert_jax.errors import UserError
from bert_jax.files import whole_file

WEIGHTS, INDEX, PICKLE = "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin"
_BUFFERS = ("position_ids", "token_type_ids")  # counters, which old versions of transformers stored with the weights
_TYPES = {"F32": np.dtype(np.float32), "F16": np.dtype(np.float16), "BF16": np.dtype(jnp.bfloat16)}


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
            for name in sorted(set(_index(folder / INDEX).values())):
                tensors._add_safetensors(folder / name)
        elif (folder / WEIGHTS).exists():
            tensors._add_safetensors(folder / WEIGHTS)
        elif (folder / PICKLE).exists():
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

    def rename(self, new_name: Callable[[str], str]) -> None:
        """Gives every tensor another name."""
        names = {name: new_name(name) for name in self.shapes}
        self.shapes = {names[name]: shape for name, shape in self.shapes.items()}
        self._readers = {names[name]: reader for name, reader in self._readers.items()}

    def add(self, name: str, shape, dtype: str, reader: Callable[[], np.ndarray]) -> None:
        """Adds a tensor of a type as safetensors names it. Raises UserError for one that is no float."""
        if name.endswith(_BUFFERS):
            return
        if dtype not in _TYPES:
            raise UserError(f"tensor {name}: of type {dtype}; only float32, float16 and bfloat16 are supported")
        self.shapes[name] = tuple(shape)
        self._readers[name] = reader

    def _add_safetensors(self, path: Path) -> None:
        try:
            with safe_open(path, framework="np"):  # checks the whole header
                header, start = _header(path)
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path}: missing, truncated or no safetensors file ({error}); get it again") from None
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


def _header(path: Path) -> tuple[dict[str, dict], int]:
    """The entries of a safetensors file, and where its numbers begin (see `write_safetensors`)."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
    header.pop("__metadata__", None)
    return header, 8 + size


def _from_file(path: Path, offset: int, entry: dict) -> np.ndarray:
    shape = entry["shape"]
    return np.fromfile(path, _TYPES[entry["dtype"]], math.prod(shape), offset=offset).reshape(shape)


def _numpy(tensor) -> np.ndarray:
    return tensor.float().numpy()


def _index(path: Path) -> dict[str, str]:
    try:
        return {name: str(file) for name, file in json.loads(path.read_text(encoding="utf-8"))["weight_map"].items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{path}: no index of safetensors files; get it again") from None


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
