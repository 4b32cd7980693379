"""Where the answers of a command come from, and how they are made: common options."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from palate.errors import InputError

if TYPE_CHECKING:
    from palate.alignment.candidates import Source

UpstreamOption = Annotated[
    str | None,
    typer.Option(
        metavar="URL", help="An OpenAI-compatible endpoint, such as http://localhost:8000/v1.", show_default=False
    ),
]
UpstreamModelOption = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="Which of the endpoint's models; its first if left out.", show_default=False),
]
PolicyOption = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="A causal language model on this machine: a folder, or one from the hub. With neither, bundled answers.",
        show_default=False,
    ),
]
AdapterOption = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="An adapter of the policy, as palate train makes one.", show_default=False),
]
ValueHeadOption = Annotated[
    Path | None, typer.Option(metavar="DIR", help="The policy's value head, for guided answers.", show_default=False)
]
StrategyOption = Annotated[
    str,
    typer.Option(metavar="NAME", help="off, or instruct, examples, guided, best-of-n, or some of them joined by +."),
]
CandidatesOption = Annotated[int, typer.Option(metavar="N", help="Answers drawn for best-of-n.")]
TokensOption = Annotated[int, typer.Option(metavar="N", help="Of an answer, at most.")]
TemperatureOption = Annotated[float, typer.Option(metavar="T", help="Of the model, 0 or more.")]


@asynccontextmanager
async def source_of(
    upstream: str | None, name: str | None, policy: str | None, adapter: Path | None = None
) -> AsyncIterator["Source"]:
    """The source that the options name, until the context ends."""
    if upstream is not None and policy is not None:
        raise InputError("Both --upstream and --policy are given; answers come from one of them, so leave one out")
    if adapter is not None and policy is None:
        raise InputError("--adapter changes a model on this machine; give that with --policy")
    if upstream is not None:
        from palate.alignment.endpoint import Endpoint

        async with Endpoint(upstream, name) as endpoint:
            yield endpoint
    elif policy is not None:
        from palate.alignment.local import LocalModel

        yield LocalModel.load(policy, adapter=adapter)
    else:
        from palate.alignment.candidates import Known

        yield Known.bundled()
