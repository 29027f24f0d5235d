"""`invalidation`: named events, and what each of them purges."""

from collections.abc import Mapping
from typing import Annotated, Any, Final, TypeAlias

from pydantic import AfterValidator, Field, model_validator

from proxy.core.invalidation import Event, Events, Target
from proxy.settings.types import Name, Section, Text


def _target(text: str) -> str:
    Target.parse(text)
    return text


TargetText: TypeAlias = Annotated[Text, AfterValidator(_target)]
TARGETS_SCHEMA: Final[Mapping[str, Any]] = {
    "type": "array",
    "items": {"type": "string", "minLength": 1},
    "minItems": 1,
}


class EventSettings(Section):
    """What one event purges. Short form: the list of targets."""

    targets: tuple[TargetText, ...] = Field(
        min_length=1,
        description="`kind:value`, where the kind is `key`, `rule`, `model`, `tag`, `tenant`, "
        "`endpoint`, `older_than` (seconds) or `event` (another one's targets); or `all`. A place "
        "such as `{model}` is filled from what the event tells.",
    )
    soft: bool = Field(
        default=False,
        description="Make the entries stale instead of deleting them. Targets of another event "
        "keep that one's way.",
    )

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, given: Any) -> Any:
        return {"targets": given} if isinstance(given, list | tuple) else given


Invalidation: TypeAlias = Mapping[Name, EventSettings]


def compile_event(name: str, event: EventSettings) -> Event:
    """One event. Its targets are known to be sound: the model checked them."""
    return Event(name, tuple(Target.parse(text) for text in event.targets), event.soft)


def compile_events(invalidation: Invalidation) -> Events:
    """The events, cascades resolved; that they name each other rightly was checked before."""
    return Events(compile_event(name, event) for name, event in invalidation.items())
