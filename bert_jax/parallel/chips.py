"""THE table of accelerators: what their makers state of computation, memory and network.

TPUs: "key specifications" of docs.cloud.google.com/tpu/docs/v4, /v5e, /v5p and /v6e; the memory is what libtpu 0.0.42 says
that programs can use; the links of v4 are those of Jouppi et al. 2023, table 4. GPUs: NVIDIA's data sheets of A100 (2021), H100
(2023), H200 (2024) and DGX B200 (2024), without sparsity, read in copies of their tables; what connects servers is that of
DGX A100 (200 Gb/s for each GPU), H100 and B200 (400 Gb/s), not verified.
"""

import dataclasses

import jax

GB, GIB = 1e9, 1 << 30


@dataclasses.dataclass(frozen=True)
class Chip:
    """An accelerator, as jax sees it one device. Rates are those of a second, and upper bounds."""

    device_kind: str  # what jax calls it, or the beginning of that
    flops: float  # bfloat16, dense
    memory: float  # bytes that a program can use; of GPUs by the data sheet, a few percent less than there are
    memory_rate: float  # bytes of the main memory, read or written
    # Bytes that it can send, through all links together, while it receives as many: half the bidirectional rate of data sheets.
    network_rate: float
    connected: int  # devices that this network connects at most: a pod of TPUs, a server of GPUs
    between_servers: float = 0.0  # bytes that it can send to other servers; 0: there is no such network

    @property
    def is_gpu(self) -> bool:
        return self.device_kind.startswith("NVIDIA")


# By the name in --topology (v4 only counts in training). Where the device kinds of two begin alike, the longer one comes first.
CHIPS = {
    "v4": Chip("TPU v4", 275e12, 2 * 15.25 * GIB, 1200 * GB, 300 * GB, 4096),
    "v5e": Chip("TPU v5 lite", 197e12, 15.75 * GIB, 819 * GB, 200 * GB, 256),
    "v5p": Chip("TPU v5", 459e12, 95.74 * GIB, 2765 * GB, 600 * GB, 6144),
    "v6e": Chip("TPU v6", 918e12, 31.25 * GIB, 1638 * GB, 400 * GB, 256),
    "a100": Chip("NVIDIA A100-SXM4-80GB", 312e12, 80 * GB, 2039 * GB, 300 * GB, 8, 25 * GB),
    "a100_40": Chip("NVIDIA A100", 312e12, 40 * GB, 1555 * GB, 300 * GB, 8, 25 * GB),
    "h100_pcie": Chip("NVIDIA H100 PCIe", 756e12, 80 * GB, 2000 * GB, 64 * GB, 8, 50 * GB),  # PCIe 5, 16 lanes
    "h100_nvl": Chip("NVIDIA H100 NVL", 835e12, 94 * GB, 3900 * GB, 300 * GB, 2, 50 * GB),  # NVLink joins pairs
    "h100": Chip("NVIDIA H100", 989e12, 80 * GB, 3350 * GB, 450 * GB, 8, 50 * GB),
    "h200": Chip("NVIDIA H200", 989e12, 141 * GB, 4800 * GB, 450 * GB, 8, 50 * GB),
    "b200": Chip("NVIDIA B200", 2250e12, 180 * GB, 8000 * GB, 900 * GB, 8, 50 * GB),
}


def chip_of(device: jax.Device) -> Chip | None:
    """Returns the entry of a device; None if the table has none (every CPU)."""
    return next((chip for chip in CHIPS.values() if device.device_kind.startswith(chip.device_kind)), None)
