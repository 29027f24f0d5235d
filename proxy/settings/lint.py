"""What `magic-proxy check` says about settings that are allowed, but look like a slip."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from urllib.parse import urlsplit

from proxy.settings.checks import is_loopback
from proxy.settings.clients import OPEN
from proxy.settings.document import Loc, Place, path_text
from proxy.settings.lint_rules import Code, Remark, Severity, rule_remarks
from proxy.settings.models import Settings, Tier, UnlistedModels

__all__ = ["Code", "Finding", "Severity", "lint"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One remark and its place; `line` and `column` count from 1, 0 where there is no file."""

    severity: Severity
    code: Code
    message: str
    path: str = ""
    file: str = ""
    line: int = 0
    column: int = 0

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}:{self.column}: " if self.line else ""
        return f"{place}{self.path}: {self.message} [{self.code.value}]"


class _Scope(StrEnum):
    """Who reaches an upstream's keys."""

    LOCAL = "local"  # this machine only
    KNOWN = "known"  # clients with a key
    ANYBODY = "anybody"  # whoever reaches the address


def lint(settings: Settings, place_of: Callable[[Loc], Place]) -> list[Finding]:
    """All remarks, in file order."""
    findings = []
    for remark in (
        *rule_remarks(settings),
        *_upstreams(settings),
        *_models(settings),
        *_workers(settings),
    ):
        place = place_of(remark.loc)
        findings.append(
            Finding(
                remark.severity,
                remark.code,
                remark.message,
                path_text(remark.loc),
                place.file,
                place.line,
                place.column,
            )
        )
    return sorted(findings, key=lambda found: (found.line == 0, found.line, found.column))


def _upstreams(settings: Settings) -> Iterator[Remark]:
    used = {settings.main_upstream} if _main_is_used(settings) else set()
    used |= {model.upstream or settings.main_upstream for model in settings.models.values()}
    reach = _reach(settings)
    for name, upstream in settings.upstreams.items():
        if name not in used:
            yield Remark(
                Severity.NOTE,
                Code.UNUSED_UPSTREAM,
                ("upstreams", name),
                "no model uses this upstream, and it is not the default one",
            )
        if upstream.api_keys and reach is _Scope.ANYBODY:
            yield Remark(
                Severity.WARNING,
                Code.OPEN_KEY_POOL,
                ("upstreams", name, "api_keys"),
                f"whoever reaches {settings.server.host} spends these keys: list `clients` "
                "instead of `open`",
            )
        if not upstream.verify_tls:
            yield Remark(
                Severity.WARNING,
                Code.UNVERIFIED_TLS,
                ("upstreams", name, "verify_tls"),
                "anybody on the way can read the keys and the answers; give `ca_file` instead",
            )
        parts = urlsplit(upstream.base_url)
        if upstream.api_keys and parts.scheme == "http" and not is_loopback(parts.hostname or ""):
            yield Remark(
                Severity.NOTE,
                Code.KEYS_IN_CLEAR,
                ("upstreams", name, "base_url"),
                "the keys travel without encryption",
            )


def _workers(settings: Settings) -> Iterator[Remark]:
    if settings.server.workers != 1 and settings.store.resolved_tiers == (Tier.MEMORY,):
        yield Remark(
            Severity.NOTE,
            Code.SEPARATE_MEMORIES,
            ("store",),
            "each of the workers has a cache of its own, to be filled by itself: add a tier that "
            "they share, `disk` or `redis`",
        )


def _main_is_used(settings: Settings) -> bool:
    """Pass-through and unlisted models go to the main upstream; so it counts as used."""
    return settings.default_upstream is not None or (
        settings.unlisted_models is UnlistedModels.FORWARD or len(settings.upstreams) == 1
    )


def _reach(settings: Settings) -> _Scope:
    if settings.clients != OPEN:
        return _Scope.KNOWN
    return _Scope.LOCAL if is_loopback(settings.server.host) else _Scope.ANYBODY


def _models(settings: Settings) -> Iterator[Remark]:
    implied = len(settings.upstreams) > 1 and settings.default_upstream is None
    for name, model in settings.models.items():
        if model.upstream is None and implied:
            yield Remark(
                Severity.WARNING,
                Code.MODEL_WITHOUT_UPSTREAM,
                ("models", name),
                f"names no upstream, so the first one answers, `{settings.main_upstream}`: say "
                "`upstream`, or set `default_upstream`",
            )
    yield from _credentials_to_fallbacks(settings)
    if settings.unlisted_models is UnlistedModels.REFUSE and not settings.models:
        yield Remark(
            Severity.WARNING,
            Code.NO_MODELS,
            ("unlisted_models",),
            "no model is listed, so every request with a model name is refused",
        )


def _credentials_to_fallbacks(settings: Settings) -> Iterator[Remark]:
    """Chains along which a client's own credential reaches an upstream that it is not for."""
    if settings.clients is not None and settings.clients != OPEN:
        return
    for name, model in settings.models.items():
        first = model.upstream or settings.main_upstream
        steps = [
            (("models", name, setting, place), fallback)
            for setting, chain in model.chains.items()
            for place, fallback in enumerate(chain)
        ]
        for place, fallback in steps:
            other = settings.models[fallback].upstream or settings.main_upstream
            if other != first and not settings.upstreams[other].api_keys:
                yield Remark(
                    Severity.WARNING,
                    Code.CREDENTIAL_TO_FALLBACK,
                    place,
                    f"when `{first}` fails, the client's own key is sent to `{other}`: give that "
                    "upstream `api_keys`, or list `clients`",
                )
