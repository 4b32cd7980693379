"""Answers from an OpenAI-compatible endpoint, by the official client."""

import asyncio
import json
import os
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, Any

from palate.alignment.candidates import Candidate, Sampling, as_messages, check_count
from palate.errors import InputError, MissingExtraError, UpstreamError
from palate.feedback import Text

if TYPE_CHECKING:
    from openai.types.chat import ChatCompletion

_TOO_LONG = ("context_length_exceeded", "context length", "context size", "maximum context", "too long")
_NO_MANY = (400, 404, 422, 500, 501)  # statuses of servers that refuse more than one answer at once, or so many


class Endpoint:
    """A model behind an OpenAI-compatible API: OpenAI's own, vLLM's, llama.cpp's, Ollama's.

    Failed requests, time-outs and refusals for their number are tried again, ever later, by the client.

    Args:
        url: of the API, such as ``http://localhost:8000/v1``.
        model: which of its models; the first that it lists by default.
        api_key: the environment's OPENAI_API_KEY by default; an endpoint without keys takes anything.
        at_once: requests in flight at most.
        timeout: seconds for one request.
        retries: of a request that failed.
        options: more arguments of a request, such as ``{"max_completion_tokens": 512}``; None takes one out.

    Raises:
        MissingExtraError: the package `openai` is not installed.

    Example:
        >>> from palate.alignment.candidates import Sampling
        >>> async with Endpoint("http://localhost:8000/v1") as source:  # doctest: +SKIP
        ...     await source.sample(["How do I boil an egg?"], 8, Sampling())
    """

    def __init__(
        self,
        url: str,
        model: str | None = None,
        *,
        api_key: str | None = None,
        at_once: int = 8,
        timeout: float = 60.0,
        retries: int = 3,
        options: dict[str, Any] | None = None,
    ) -> None:
        try:
            from openai import AsyncOpenAI
        except ModuleNotFoundError as error:
            raise MissingExtraError("openai", "openai") from error
        if not url.startswith(("http://", "https://")):
            raise InputError(f"Endpoint {url!r} is no URL; write it like http://localhost:8000/v1")
        if at_once < 1 or not timeout > 0 or retries < 0:
            raise InputError(
                f"at_once {at_once!r}, timeout {timeout!r} or retries {retries!r} is out of range; "
                "give 1 or more, more than 0, and 0 or more"
            )
        self.url = url
        self._client = AsyncOpenAI(
            base_url=url,
            api_key=api_key or os.environ.get("OPENAI_API_KEY") or "none",
            timeout=timeout,
            max_retries=retries,
        )
        self._model, self._options = model, options or {}
        self._free = asyncio.Semaphore(at_once)
        self._many = True  # until it refuses

    @property
    def name(self) -> str:
        """The model's name; the URL as long as the model is not known."""
        return self._model or self.url

    async def __aenter__(self) -> "Endpoint":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close its connections."""
        await self._client.close()

    async def sample(self, prompts: Sequence[Text], n: int, sampling: Sampling) -> list[list[Candidate]]:
        """As `palate.alignment.candidates.Source.sample`; requests run side by side."""
        check_count(n)
        if sampling.temperature == 0:
            n = 1  # all would be the same
        return list(await asyncio.gather(*(self._answers(prompt, n, sampling) for prompt in prompts)))

    async def _answers(self, prompt: Text, n: int, sampling: Sampling) -> list[Candidate]:
        found: list[Candidate] = []
        if n == 1 or self._many:
            try:
                found += await self._request(prompt, n, sampling)
            except UpstreamError as error:
                if n == 1 or error.status not in _NO_MANY:
                    raise
                self._many = False
        if len(found) < n:
            # There are servers that know no `n`, and such that refuse it.
            rest = range(len(found) or int(self._many), n)
            more = await asyncio.gather(
                *(self._request(prompt, 1, sampling.moved(k)) for k in rest), return_exceptions=True
            )
            for answers in more:
                if not isinstance(answers, BaseException):
                    found += answers
            # What was paid for is kept where some failed.
            failed = next((one for one in more if isinstance(one, BaseException)), None)
            if failed is not None and not found:
                raise failed
        if not found:
            raise UpstreamError(f"{self.name} at {self.url} gave nothing but empty answers; look at what it logs")
        return found[:n]

    async def _request(self, prompt: Text, n: int, sampling: Sampling) -> list[Candidate]:
        async with self._free:
            completion: ChatCompletion = await self._told(
                self._client.chat.completions.create(**await self._arguments(prompt, n, sampling))
            )
        choices = getattr(completion, "choices", None)
        if not isinstance(choices, list):
            raise self._rubbish(completion)
        found = []
        for choice in choices:
            text = getattr(getattr(choice, "message", None), "content", None)
            if isinstance(text, str) and text.strip():
                found.append((text, getattr(choice, "finish_reason", None) == "length"))
        usage = getattr(completion, "usage", None)
        spent, read = (getattr(usage, name, None) or 0 for name in ("completion_tokens", "prompt_tokens"))
        return [
            Candidate(text, spent // len(choices), cut, prompt_tokens=0 if place else read)
            for place, (text, cut) in enumerate(found)
        ]

    async def stream(self, prompt: Text, sampling: Sampling) -> AsyncIterator[str]:
        """As `palate.alignment.candidates.Source.stream`."""
        async with self._free:
            arguments = await self._arguments(prompt, 1, sampling)
            chunks = await self._told(self._client.chat.completions.create(**arguments, stream=True))
            said, ended = 0, False
            while True:
                try:
                    chunk = await self._told(anext(chunks), said)
                except StopAsyncIteration:
                    break
                for choice in getattr(chunk, "choices", None) or ():
                    if piece := getattr(getattr(choice, "delta", None), "content", None):
                        said += len(piece)
                        yield piece
                    ended |= getattr(choice, "finish_reason", None) is not None
        if not ended:
            raise self._broken(said)
        if not said:
            raise UpstreamError(f"{self.name} at {self.url} gave an empty answer; look at what it logs")

    async def forward(self, body: dict[str, Any]) -> dict[str, Any]:
        """A request as it is, and what the endpoint makes of it: for what is no mere text, such as tools or pictures.

        Raises:
            UpstreamError: the endpoint is out of reach, or refuses.
        """
        async with self._free:
            said = await self._told(self._client.chat.completions.create(**await self._with_model(body)))
        if not hasattr(said, "model_dump"):
            raise self._rubbish(said)
        return dict(said.model_dump(mode="json", exclude_unset=True))

    async def forward_stream(self, body: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        """The same, chunk by chunk."""
        async with self._free:
            asked = {**await self._with_model(body), "stream": True}
            chunks = await self._told(self._client.chat.completions.create(**asked))
            while True:
                try:
                    chunk = await self._told(anext(chunks), 1)
                except StopAsyncIteration:
                    return
                yield chunk.model_dump(mode="json", exclude_unset=True)

    async def models(self) -> list[dict[str, Any]]:
        """The models that the endpoint lists."""
        listed = await self._told(self._client.models.list())
        found = getattr(listed, "data", None) or ()
        return [dict(model.model_dump(mode="json", exclude_unset=True)) for model in found]

    async def _with_model(self, body: dict[str, Any]) -> dict[str, Any]:
        return body if body.get("model") else {**body, "model": await self._first_model()}

    async def _first_model(self) -> str:
        if self._model is None:
            listed = await self._told(self._client.models.list())
            names = [model.id for model in getattr(listed, "data", None) or ()]
            if not names:
                raise self._rubbish(listed)
            self._model = names[0]
        return self._model

    async def _arguments(self, prompt: Text, n: int, sampling: Sampling) -> dict[str, Any]:
        arguments = (
            {
                "model": sampling.more.get("model") or await self._first_model(),
                "messages": as_messages(prompt),
                "n": n if n > 1 else None,
                "temperature": sampling.temperature,
                "top_p": sampling.top_p if sampling.top_p < 1 else None,
                "max_tokens": sampling.max_tokens,
                "stop": list(sampling.stop) or None,
                "seed": sampling.seed,
            }
            | self._options
            | dict(sampling.more)
        )
        return {name: value for name, value in arguments.items() if value is not None}

    async def _told(self, request: Any, said: int = 0) -> Any:
        """What a request gives, with what went wrong told as an error of ours; `said` characters of a stream came."""
        import openai

        try:
            return await request
        except openai.APITimeoutError as error:
            raise UpstreamError(
                f"{self.name} at {self.url} did not answer within {self._client.timeout:g} s, after "
                f"{self._client.max_retries} more tries; give it longer, or ask for less"
            ) from error
        except openai.APIConnectionError as error:
            if said:
                raise self._broken(said) from error
            raise UpstreamError(f"{self.url} cannot be reached: {_reason(error)}; start it, or name another") from error
        except openai.RateLimitError as error:
            raise UpstreamError(
                f"{self.url} refuses for too many requests, after {self._client.max_retries} more tries; "
                "wait, or have fewer at once"
            ) from error
        except openai.APIStatusError as error:
            message, status = str(error.message), error.status_code
            long = any(words in message.lower() or words == error.code for words in _TOO_LONG)
            if long and status in (400, 413, 422):
                raise InputError(f"The prompt is longer than {self.name} reads: {message[:200]}; shorten it") from error
            raise UpstreamError(
                f"{self.url} answered with status {status}: {message[:200]}; see that key and model are right", status
            ) from error
        except openai.APIResponseValidationError as error:
            raise self._rubbish(error) from error
        except openai.APIError as error:
            raise UpstreamError(f"{self.name} at {self.url} failed: {error.message}; ask again") from error
        except (openai.OpenAIError, json.JSONDecodeError) as error:
            raise self._rubbish(error) from error

    def _broken(self, said: int) -> UpstreamError:
        return UpstreamError(f"{self.name} at {self.url} broke off after {said:,} characters; ask again")

    def _rubbish(self, answer: object) -> UpstreamError:
        return UpstreamError(
            f"{self.url} answered with what is no chat completion: {str(answer)[:120]!r}; "
            "name the URL of an OpenAI-compatible API, which often ends in /v1"
        )


def _reason(error: BaseException) -> str:
    cause = error.__cause__
    return (str(cause) if cause else str(error)).strip() or type(cause or error).__name__
