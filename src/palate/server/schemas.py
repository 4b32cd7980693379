"""What goes in and comes out, as the OpenAPI document tells it."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

NAME = r"^[^\x00]*$"
"""Whatever a database can hold."""

Identifier = Annotated[str, Field(min_length=1, max_length=256)]


class _In(BaseModel):
    model_config = ConfigDict(extra="forbid")


class _Open(BaseModel):
    model_config = ConfigDict(extra="allow")


# Chat


class ChatMessage(_Open):
    """One turn; parts that are no text are passed on as they are."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[dict[str, Any]] | None = None


class PalateOptions(_In):
    """What only Palate knows: `extra_body={"palate": {...}}` of the OpenAI client."""

    strategy: Annotated[
        str | None,
        Field(description="`off`, or some of `instruct`, `examples`, `guided`, `best-of-n`, joined by a plus."),
    ] = None
    candidates: Annotated[int | None, Field(ge=1, le=64, description="Answers drawn for best-of-n.")] = None
    learn: Annotated[bool, Field(description="Whether anything is learned from this request.")] = True


class StreamOptions(_Open):
    """As OpenAI's."""

    include_usage: bool = False


class ChatRequest(_Open):
    """As OpenAI's; what is not named here is passed on to the upstream."""

    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    model: str | None = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    n: Annotated[int | None, Field(ge=1, le=64)] = 1
    stop: str | Annotated[list[str], Field(max_length=16)] | None = None
    seed: Annotated[int | None, Field(ge=0, le=2**63 - 1)] = None
    max_tokens: Annotated[int | None, Field(ge=1)] = None
    max_completion_tokens: Annotated[int | None, Field(ge=1)] = None
    temperature: Annotated[float | None, Field(ge=0, le=2)] = None
    top_p: Annotated[float | None, Field(gt=0, le=1)] = None
    user: Identifier | None = None
    safety_identifier: Identifier | None = None
    metadata: dict[str, Any] | None = None
    palate: PalateOptions | None = None


class Usage(BaseModel):
    """Tokens of all candidates that were drawn."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class AnswerMessage(_Open):
    """What was answered."""

    role: Literal["assistant"] = "assistant"
    content: str | None = None
    refusal: str | None = None


class Choice(_Open):
    """One answer."""

    index: int
    message: AnswerMessage
    finish_reason: str | None = "stop"
    logprobs: Any = None


class Reading(BaseModel):
    """How the last message was read, as a reply to the answer before it."""

    completion_id: str
    satisfaction: float
    confidence: float
    target: str
    learned: Annotated[bool, Field(description="Whether it counts for what is known of the person.")]
    provisional: Annotated[bool, Field(description="Whether it counts only once something else supports it.")]
    reason: Annotated[str | None, Field(description="Why it does not count.")] = None


class Personal(BaseModel):
    """How an answer came about."""

    strategy: str
    personal: Annotated[bool, Field(description="Whether somebody's own taste chose or led the answer.")]
    guarded: Annotated[bool, Field(description="Whether the person's own answers do not support personalising.")]
    generic: Annotated[bool, Field(description="Whether chance made it the usual answer, to measure against.")]
    candidates: int
    chosen_tokens: Annotated[int, Field(description="Tokens of the answer that was given.")]
    reading: Reading | None = None


class ChatCompletion(_Open):
    """As OpenAI's, with `palate`."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[Choice]
    usage: Usage
    palate: Personal | None = None


class ModelCard(_Open):
    """A model that can be asked for."""

    id: str
    object: Literal["model"] = "model"
    created: int = 0
    owned_by: str = "palate"


class ModelList(BaseModel):
    """As OpenAI's."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


# Feedback


class FeedbackRequest(_In):
    """What somebody says of an answer.

    | name | value |
    | --- | --- |
    | `rating` | 0 to 1, or true or false |
    | `comparison` | index of the preferred one among the answers that were shown |
    | `reply` | what they typed next |
    | `demonstration` | the answer that they would have wanted |
    | `comment` | what they say of the answer in words |

    `null` takes back what was said under the id.
    """

    id: Annotated[str | None, Field(min_length=1, max_length=128, description="Sent again it replaces.")] = None
    completion_id: Annotated[str, Field(min_length=1, max_length=64)]
    user: Identifier | None = None
    name: Literal["rating", "comparison", "reply", "demonstration", "comment"]
    value: bool | float | str | None
    comment: Annotated[str | None, Field(max_length=20_000)] = None
    dryrun: bool = False


class FeedbackResult(BaseModel):
    """What became of it."""

    id: str
    object: Literal["feedback"] = "feedback"
    completion_id: str
    user: str
    name: str
    value: bool | float | str | None
    learned: bool
    evidence: Annotated[int, Field(description="Pieces of evidence that it became.")]
    reason: Annotated[str | None, Field(description="Why nothing was learned.")] = None
    dryrun: bool = False


# Elicitation


class QueryRequest(_In):
    """How somebody is asked; nothing need be given."""

    answers: Annotated[int, Field(ge=1, le=1_000, description="How many are wanted in all.")] = 10
    stop_below: Annotated[
        float, Field(ge=0, description="No more questions once none is expected to tell so much, in nats.")
    ] = 0.01


class QueryResult(BaseModel):
    """A question; `query_id` is null where there is no more to ask."""

    query_id: str | None
    prompt: str | list[dict[str, str]] | None = None
    response_a: str | list[dict[str, str]] | None = None
    response_b: str | list[dict[str, str]] | None = None
    asked: Annotated[int, Field(description="Questions that were answered so far.")]
    expected_information: Annotated[float | None, Field(description="Of the answer, in nats.")] = None
    confidence: Annotated[float, Field(description="Share of what people differ by that is known of this one, 0 to 1.")]


class ChoiceRequest(_In):
    """Which one is better."""

    choice: Literal["a", "b", "tie", "skip"]


# People


class Style(BaseModel):
    """How somebody takes to one style."""

    high: Annotated[str, Field(description="Word for much of it.")]
    word: Annotated[str, Field(description="The end that is liked more.")]
    other: str
    liking: Annotated[float, Field(description="Reward, in logits, of one standard deviation more of it.")]
    deviation: float
    certainty: Annotated[float, Field(description="Probability that this end is liked more than the other.")]
    population: float
    spread: float


class Evidence(BaseModel):
    """One thing that somebody said."""

    id: str
    kind: Literal["comparison", "rating", "reply"]
    created_at: str
    said: dict[str, Any]
    provisional: bool


class Profile(BaseModel):
    """What is known of somebody, how surely, and from what."""

    id: str
    words: str
    styles: list[Style]
    confidence: Annotated[float, Field(description="Share of what people differ by that is known of this one, 0 to 1.")]
    personal: Annotated[bool, Field(description="Whether their own answers support personalising.")]
    paused: bool
    half_life_days: float | None
    evidence: list[Evidence]


class ProfileChange(_In):
    """What is to change; what is left out stays."""

    paused: bool | None = None
    half_life_days: Annotated[
        float | None, Field(gt=0, description="After how many days half is forgotten; null: the model's own.")
    ] = None
    reset: Annotated[bool, Field(description="Let nothing that was said so far count any more.")] = False
    withdraw: Annotated[str | None, Field(description="Id of one piece of evidence that is to count no more.")] = None
    confirm: Annotated[str | None, Field(description="Id of a provisional one that is to count.")] = None


class UserCard(BaseModel):
    """Somebody who is known."""

    id: str
    created_at: str
    paused: bool


class UserList(BaseModel):
    """Those who are known, in the order they came."""

    object: Literal["list"] = "list"
    data: list[UserCard]


class Link(BaseModel):
    """A link that opens somebody's own pages."""

    url: str
    expires_in: int


class Erased(BaseModel):
    """What was erased of somebody."""

    id: str
    deleted: bool
    rows: Annotated[dict[str, int], Field(description="Erased from each table.")]
    adapters: Annotated[list[str], Field(description="Erased with their weights.")]
    traces: Annotated[int, Field(description="Database files in which their id or texts still stand; 0 it must be.")]
    shared: Annotated[str, Field(description="What common weights still hold, and until when.")]


class CandidateCard(BaseModel):
    """One answer that was drawn, and how it was scored."""

    text: str
    shown: bool
    reward: Annotated[float, Field(description="By the person's taste, in logits, against the mean of all drawn.")]
    deviation: float
    population: Annotated[float, Field(description="By the taste of people in general.")]
    score: float
    contributions: Annotated[list[float], Field(description="What each base reward adds.")]


class WhyEvidence(BaseModel):
    """What the taste rests on most."""

    id: str
    nats: float
    style: str | None
    said: dict[str, Any]


class Why(BaseModel):
    """Why an answer was given."""

    id: str
    strategy: str
    personal: bool
    guarded: bool
    generic: bool
    propensity: float
    system: str | None
    words: Annotated[str, Field(description="The reason in a sentence.")]
    candidates: list[CandidateCard]
    base_rewards: Annotated[list[str], Field(description="What each is about, where it has words.")]
    evidence: list[WhyEvidence]


# Operations


class Health(BaseModel):
    """Whether the server can work."""

    status: Literal["ok", "failing"]
    database: bool
    model: str
    version: str


class JobRequest(_In):
    """Work to be done in the background."""

    kind: Literal["rescore", "refit"]


class JobCounts(BaseModel):
    """Work that waits, is being done, or failed."""

    queued: int
    running: int
    failed: int
