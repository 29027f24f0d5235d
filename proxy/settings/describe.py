"""Walk the models: which section stands where."""

from typing import Any, get_args

from proxy.settings.document import Loc
from proxy.settings.models import Settings
from proxy.settings.types import Section


def section_within(annotation: Any) -> type[Section] | None:
    """The section that a field holds, itself or in a list or mapping; no field holds two kinds."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    return next(
        (found for part in get_args(annotation) if (found := section_within(part)) is not None),
        None,
    )


def section_at(loc: Loc) -> type[Section] | None:
    """The section that stands at a place of the settings."""
    section: type[Section] | None = Settings
    steps = iter(loc)
    for step in steps:
        field = section.model_fields.get(str(step)) if section else None
        if field is None:
            return None
        section = section_within(field.annotation)
        if section is not field.annotation:
            next(steps, None)  # the place in the list, or the name in the mapping
    return section
