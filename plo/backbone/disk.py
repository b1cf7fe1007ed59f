"""Weights that are kept on disk, as they are needed only now and then."""

import mmap
import tempfile
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

from plo.backbone import sharding
from plo.backbone.head import ModelError
from plo.paths import plo_home


class OnDisk(Mapping[str, Tensor]):
    """Copies of tensors in a file without a name, which takes no memory and vanishes with the process, however it ends.

    Each look-up maps the tensor's part of the file anew: pages are read when they are used, and freed with the tensor.
    Writing to such a tensor changes no other one. For a sharded tensor the file holds this process's part, and a look-up
    returns it sharded as it was.

    Raises:
        ModelError: the disk is full.
    """

    def __init__(self, tensors: Mapping[str, Tensor]):
        folder = plo_home()  # not the system's temporary folder, which may be memory
        self._places: dict[str, tuple[int, torch.dtype, torch.Size, Callable[[Tensor], Tensor]]] = {}
        try:
            self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 (open as long as this is)
            for name, tensor in tensors.items():
                part, whole = sharding.part_of(tensor.detach())
                values = part.cpu().contiguous()
                start = self._file.seek(
                    -(-self._file.tell() // mmap.ALLOCATIONGRANULARITY) * mmap.ALLOCATIONGRANULARITY
                )
                self._file.write(values.flatten().view(torch.uint8).numpy().data)
                self._places[name] = start, values.dtype, values.shape, whole
            self._file.flush()
        except OSError as error:
            size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values()) / 1e9
            raise ModelError(
                f"{size:.1f} GB of weights cannot be kept in {folder}: {error}. Make room, or set PLO_HOME to a folder "
                f"on a larger disk."
            ) from error

    def __getitem__(self, name: str) -> Tensor:
        start, dtype, shape, whole = self._places[name]
        if not shape.numel():  # a small tensor's part, where there are many processes
            return whole(torch.empty(shape, dtype=dtype))
        length = shape.numel() * dtype.itemsize
        part = mmap.mmap(self._file.fileno(), length, access=mmap.ACCESS_COPY, offset=start)
        return whole(torch.frombuffer(part, dtype=dtype).view(shape))

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)
