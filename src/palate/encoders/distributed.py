"""Reading texts on a Ray cluster: the vectors of the encoder it wraps, by as many of its copies as there are cores.

Ray Data cuts the texts into blocks and hands them to actors that each hold a copy of the encoder, loaded by name where
they run: a folder must be reachable from there. What comes back is put in order again.
"""

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from palate.encoders.base import Encoder, Progress
from palate.errors import EncoderError, MissingExtraError

_BLOCK = 64  # answers an actor reads at once


def connect(address: str | None = None) -> None:
    """Join the Ray cluster at an address, or start one on this machine; nothing where one is joined already.

    Raises:
        MissingExtraError: Ray is not installed.
        EncoderError: there is no cluster at that address.
    """
    # Set before Ray is imported: Palate sends nothing anywhere, and copies inherit this machine's packages.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
    except ModuleNotFoundError as error:
        raise MissingExtraError("ray", "ray") from error
    if ray.is_initialized():
        return
    try:
        dashboard = None if address else False
        ray.init(address=address, include_dashboard=dashboard, logging_level=logging.ERROR, log_to_driver=False)
    except (ConnectionError, RuntimeError, ValueError) as error:
        where = f"at {address!r} " if address else ""
        raise EncoderError(f"No Ray cluster {where}can be used ({error}); start one with: ray start --head") from error
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False


def cores() -> int:
    """How many cores the joined cluster has, 1 or more."""
    import ray

    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return max(1, int(resources.get("CPU", 1)))


@dataclass(frozen=True)
class RayEncoder:
    """An encoder whose texts are read on a Ray cluster; see `palate.encoders.Encoder`.

    Args:
        encoder: what reads; its copies are loaded by its name and must have its revision.
        copies: how many read at once; by default one for each core of the cluster.
    """

    encoder: Encoder
    copies: int | None = None

    @property
    def name(self) -> str:
        """The name of the encoder."""
        return self.encoder.name

    @property
    def revision(self) -> str:
        """The revision of the encoder."""
        return self.encoder.revision

    @property
    def blocks(self) -> Mapping[str, slice]:
        """The columns of each block, by name."""
        return self.encoder.blocks

    @property
    def width(self) -> int:
        """Number of columns, D."""
        return self.encoder.width

    def encode(
        self, prompts: Sequence[str], completions: Sequence[str], *, progress: Progress | None = None
    ) -> NDArray[np.float32]:
        """Features of each completion as an answer to its prompt, (n, D), as the encoder's own."""
        connect()
        import ray

        if not prompts:
            return self.encoder.encode(prompts, completions)
        pairs = zip(prompts, completions, strict=True)
        rows = [{"row": i, "prompt": prompt, "completion": completion} for i, (prompt, completion) in enumerate(pairs)]
        read = ray.data.from_items(rows).map_batches(
            _Reader,
            fn_constructor_args=(self.name, self.revision),
            batch_size=_BLOCK,
            batch_format="numpy",
            compute=ray.data.ActorPoolStrategy(size=self.copies or cores()),
            num_cpus=1,
        )
        out, done = np.empty((len(prompts), self.width), np.float32), 0
        for batch in read.iter_batches(batch_size=None, batch_format="numpy"):
            out[batch["row"]] = batch["features"]
            done += len(batch["row"])
            if progress:
                progress(done, len(prompts))
        return out


class _Reader:
    """A copy of the encoder, where Ray puts it."""

    def __init__(self, name: str, revision: str) -> None:
        from palate.encoders import load_encoder

        self.encoder = load_encoder(name)
        if self.encoder.revision != revision:
            raise EncoderError(
                f"Encoder {name!r} has revision {self.encoder.revision} on a machine of the cluster, {revision} here; "
                "install the same one there"
            )

    def __call__(self, batch: dict[str, NDArray[np.generic]]) -> dict[str, NDArray[np.generic]]:
        features = self.encoder.encode(batch["prompt"].tolist(), batch["completion"].tolist())
        return {"row": batch["row"], "features": features}
