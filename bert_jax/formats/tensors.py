"""Tensors of a model folder by name, from one safetensors file, several with an index, or a pickle of torch."""

import json
import math
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any, TypedDict

import jax.numpy as jnp
import msgspec
import numpy as np
from safetensors import SafetensorError, safe_open

from bert_jax.errors import UserError, listed
from bert_jax.files import GET_AGAIN, decode_json, open_regular, read_json, whole_file

WEIGHTS, INDEX, PICKLE = "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin"
_BUFFERS = ("position_ids", "token_type_ids")  # constants that old versions of transformers stored with the weights
_TYPES = {"F32": np.dtype(np.float32), "F16": np.dtype(np.float16), "BF16": np.dtype(jnp.bfloat16)}
LARGEST_HEADER = 1 << 24  # bytes, of a safetensors file; a tensor takes about 100
_Size = Annotated[int, msgspec.Meta(ge=0)]


class _Entry(TypedDict):
    """A tensor in the header of a safetensors file."""

    dtype: str
    shape: list[_Size]
    data_offsets: tuple[_Size, _Size]


class _Index(TypedDict):
    """Contents of model.safetensors.index.json."""

    weight_map: dict[str, str]


class Tensors:
    """Tensors by name: shapes are read at once, numbers on demand."""

    def __init__(self) -> None:
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._readers: dict[str, Callable[[], np.ndarray]] = {}

    @classmethod
    def open(cls, folder: Path) -> "Tensors":
        """Opens the tensors of a folder. Raises UserError if there are no files with tensors, or unreadable ones."""
        tensors = cls()
        add = {INDEX: tensors._add_indexed, WEIGHTS: tensors._add_safetensors, PICKLE: tensors._add_pickle}
        for name, add_file in add.items():
            if (folder / name).exists():
                add_file(folder / name)
                return tensors
        raise UserError(f"{folder}: no {WEIGHTS} in it; save the model with save_pretrained")

    def read(self, name: str) -> np.ndarray:
        """Reads a tensor as float32. Raises UserError if it is not finite or can no longer be read."""
        array = np.asarray(self._readers[name](), np.float32)
        if not np.isfinite(array).all():
            raise UserError(f"tensor {name}: holds numbers that are not finite; get the file again")
        return array

    def rename(self, new_name: Callable[[str], str]) -> None:
        """Renames every tensor. Raises UserError if two would have the same name."""
        names = {name: new_name(name) for name in self.shapes}
        counts = Counter(names.values())
        if twice := [name for name, new in names.items() if counts[new] > 1]:
            raise UserError(f"tensors {listed(twice)}: several names of the same tensor; remove the wrong ones")
        self.shapes = {names[name]: shape for name, shape in self.shapes.items()}
        self._readers = {names[name]: reader for name, reader in self._readers.items()}

    def add(self, name: str, shape, dtype: str, reader: Callable[[], np.ndarray]) -> None:
        """Adds a tensor; `dtype` is a name of safetensors. Raises UserError if it is not a supported float type."""
        if name.endswith(_BUFFERS):
            return
        if dtype not in _TYPES:
            raise UserError(f"tensor {name}: of type {dtype}; only float32, float16 and bfloat16 are supported")
        self.shapes[name] = tuple(shape)
        self._readers[name] = reader

    def _add_indexed(self, path: Path) -> None:
        """Adds the tensors of several files, which must be next to the index and hold exactly what it lists."""
        of_file: dict[str, set[str]] = {}
        for name, file in read_json(path, _Index)["weight_map"].items():
            of_file.setdefault(file, set()).add(name)
        for file, indexed in sorted(of_file.items()):
            if Path(file).name != file or not file.endswith(".safetensors"):
                raise UserError(
                    f"{path}: invalid file name {file!r}; use the name of a safetensors file next to it, or {GET_AGAIN}"
                )
            stored = self._add_safetensors(path.with_name(file))
            if stored != indexed:
                wrong = sorted(stored ^ indexed)
                raise UserError(f"{path}: differs from {file} in the tensors {listed(wrong)}; get both again")

    def _add_safetensors(self, path: Path) -> set[str]:
        """Adds the tensors of a file; returns their names."""
        header, start = _header(path)
        try:
            with safe_open(path, framework="np"):
                pass  # opening checks the whole header
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path}: truncated or not a safetensors file ({error}); get it again") from None
        for name, entry in header.items():
            begin, end = entry["data_offsets"]
            # A header may hold a name twice, and the library may have checked the other entry.
            if entry["dtype"] in _TYPES and end - begin != math.prod(entry["shape"]) * _TYPES[entry["dtype"]].itemsize:
                raise UserError(f"{path}: tensor {name} does not have the size that its shape implies; {GET_AGAIN}")
            # Not with the library: it maps the file, whose pages would take memory in addition to the arrays.
            self.add(name, entry["shape"], entry["dtype"], partial(_from_file, path, start + begin, entry))
        return set(header)

    def _add_pickle(self, path: Path) -> None:
        with open_regular(path) as file:
            size = file.seek(0, 2)
        try:
            import torch
        except ImportError:
            raise UserError(
                f"{path}: a pickle, which needs torch to be read safely; install torch, or save the model as safetensors"
            ) from None
        types = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
        try:
            is_zip = zipfile.is_zipfile(path)  # torch's format since 2020, which can be read on demand
            loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
        except Exception as error:  # of the pickle module, zipfile, torch ...
            reason = str(error).partition("\n")[0]
            raise UserError(f"{path}: not a file of weights only ({reason}); save the model as safetensors") from None
        if not isinstance(loaded, dict) or not all(
            isinstance(name, str) and isinstance(tensor, torch.Tensor) and tensor.layout == torch.strided
            for name, tensor in loaded.items()
        ):
            raise UserError(f"{path}: holds values that are not named tensors; save the model as safetensors")
        for name, tensor in loaded.items():
            # A view that repeats numbers, or a tensor without data.
            if tensor.numel() * tensor.element_size() > size or tensor.is_meta:
                raise UserError(f"{path}: tensor {name} has more numbers than the file; save the model as safetensors")
            dtype = types.get(tensor.dtype, str(tensor.dtype))
            self.add(name, tensor.shape, dtype, partial(lambda tensor: tensor.float().numpy(), tensor))


def _header(path: Path) -> tuple[dict[str, _Entry], int]:
    """Reads the header of a safetensors file; returns its entries and the offset of the data (see `write_safetensors`)."""
    with open_regular(path) as file:
        size = int.from_bytes(file.read(8), "little")
        text = file.read(min(size, LARGEST_HEADER))
    try:
        if len(text) < size:
            raise ValueError(f"a header of {size:,} bytes, more than the file has or than {LARGEST_HEADER:,}")
        header = {name: entry for name, entry in decode_json(text, dict[str, Any]).items() if name != "__metadata__"}
        return msgspec.convert(header, dict[str, _Entry]), 8 + size
    except ValueError as error:  # msgspec's, too
        raise UserError(f"{path}: truncated or not a safetensors file ({error}); get it again") from None


def _from_file(path: Path, offset: int, entry: _Entry) -> np.ndarray:
    shape = entry["shape"]
    numbers = np.fromfile(path, _TYPES[entry["dtype"]], math.prod(shape), offset=offset)
    if len(numbers) != math.prod(shape):
        raise UserError(f"{path}: shorter than when it was opened; get it again")
    return numbers.reshape(shape)


def write_safetensors(
    path: Path, shapes: Mapping[str, tuple[int, ...]], tensors: Iterable[tuple[str, np.ndarray]]
) -> None:
    """Writes float32 tensors one at a time, in the order of `shapes`; the library's writer needs all in memory at once.

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
