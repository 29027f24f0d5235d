"""`models`: which upstream answers for a model name, and as what."""

from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Any, Final, TypeAlias

from pydantic import AfterValidator, BeforeValidator, Field, JsonValue

from proxy.settings.types import Amount, Plain, Section, Text, plain_scalar


class UnlistedModels(StrEnum):
    """What happens to a model name that `models` does not list."""

    FORWARD = "forward"  # it goes to the default upstream under its own name
    REFUSE = "refuse"  # it is answered with 404


def _typed(value: Any) -> Any:
    """Give a text that came out of a variable the type that it would have in the file."""
    match value:
        case Plain():
            return plain_scalar(value)
        case dict():
            return {name: _typed(member) for name, member in value.items()}
        case list():
            return [_typed(item) for item in value]
        case _:
            return value


# How an answer is delivered is what a client asks for, whatever was stored; the model's name has a
# setting of its own.
_NOT_PARAMS: Final[Mapping[str, str]] = {
    "model": "`model` is a setting beside `params`",
    "stream": "`stream` is for clients to say",
    "stream_options": "`stream_options` is for clients to say; `request_usage` of the upstream "
    "has usage counted without",
}


def _only_content(value: Mapping[str, JsonValue]) -> Mapping[str, JsonValue]:
    if refused := [why for name, why in _NOT_PARAMS.items() if name in value]:
        raise ValueError("; ".join(refused))
    return value


Params: TypeAlias = Annotated[
    Mapping[str, JsonValue], BeforeValidator(_typed), AfterValidator(_only_content)
]


class CatalogueKind(StrEnum):
    """What `GET /v1/models` tells."""

    MERGED = "merged"  # every name that clients may use
    PASSTHROUGH = "passthrough"  # what the default upstream tells


class ModelSettings(Section):
    """One internal model name: who answers for it, and as what."""

    upstream: Text | None = Field(
        default=None, description="Name of the upstream; default: `default_upstream`."
    )
    model: Text | None = Field(
        default=None, description="The upstream's name for it; default: the internal name."
    )
    params: Params = Field(
        default={},
        description="Members of the body that are always set to these values; not `model`, "
        "`stream` and `stream_options`.",
    )
    default_params: Params = Field(
        default={},
        description="Members of the body that are set where a request has none; as for `params`.",
    )
    fallbacks: tuple[Text, ...] = Field(
        default=(), description="Internal model names to try in turn when this one fails."
    )
    context_window_fallbacks: tuple[Text, ...] = Field(
        default=(),
        description="Internal model names to try in turn when a request is too long for this one.",
    )
    content_policy_fallbacks: tuple[Text, ...] = Field(
        default=(),
        description="Internal model names to try in turn when this one's content filter refuses "
        "a request.",
    )

    @property
    def chains(self) -> Mapping[str, tuple[str, ...]]:
        """All models that may answer in its place, by the name of the setting."""
        return {
            "fallbacks": self.fallbacks,
            "context_window_fallbacks": self.context_window_fallbacks,
            "content_policy_fallbacks": self.content_policy_fallbacks,
        }


class PriceSettings(Section):
    """What a model's tokens cost, in whatever currency the operator counts."""

    prompt_per_million: Amount = Field(description="A million tokens of the prompt.")
    completion_per_million: Amount = Field(
        default=0.0, description="A million tokens of the completion."
    )
