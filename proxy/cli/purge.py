"""`magic-proxy purge` and `event`: have a running proxy throw entries away."""

from typing import Annotated, Any
from urllib.parse import quote

import typer
from rich.text import Text

from proxy.cli.admin_api import (
    BAD_INPUT,
    DEFAULT_URL,
    KEY_VARIABLE,
    AdminKeyVariable,
    ProxyUrl,
    ask,
)
from proxy.cli.options import JsonOutput
from proxy.cli.output import fail, out, print_json
from proxy.core.wire import Endpoint


def purge(
    *,
    key: Annotated[str | None, typer.Option(help="A store key, or the digest in it.")] = None,
    rule: Annotated[str | None, typer.Option(help="Name of a rule.")] = None,
    model: Annotated[str | None, typer.Option(help="Internal model name.")] = None,
    tag: Annotated[str | None, typer.Option(help="A tag.")] = None,
    tenant: Annotated[str | None, typer.Option(help="A tenant of the clients.")] = None,
    endpoint: Annotated[Endpoint | None, typer.Option(help="An endpoint.")] = None,
    older_than: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="What was stored longer ago.")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Everything.")] = False,
    soft: Annotated[
        bool, typer.Option("--soft", help="Make entries stale instead of deleting them.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only count what would be purged.")
    ] = False,
    url: ProxyUrl = DEFAULT_URL,
    admin_key_env: AdminKeyVariable = KEY_VARIABLE,
    as_json: JsonOutput = False,
) -> None:
    """Purge entries of a running proxy, and of all that share its store.

    Several options together select what fits them all. Names are exact. Exits with 0 when it is
    done, 1 where no proxy answers or it was not done everywhere, 2 for what the proxy refuses.
    """
    members: dict[str, Any] = {
        "key": key,
        "rule": rule,
        "model": model,
        "tag": tag,
        "tenant": tenant,
        "endpoint": endpoint,
        "older_than_seconds": older_than,
        "all": everything or None,
        "soft": soft or None,
        "dry_run": dry_run or None,
    }
    given = {name: value for name, value in members.items() if value is not None}
    report = ask("/admin/purge", given, expected="purged", url=url, key_variable=admin_key_env)
    if as_json:
        print_json(report)
    else:
        _print(report)


def event(
    name: Annotated[str, typer.Argument(help="Name of the event, as in the settings.")],
    context: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="What the event's places are filled with."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only count what would be purged.")
    ] = False,
    url: ProxyUrl = DEFAULT_URL,
    admin_key_env: AdminKeyVariable = KEY_VARIABLE,
    as_json: JsonOutput = False,
) -> None:
    """Tell a running proxy of an event; it purges what `invalidation` in its settings says.

    Exits with 0 when it is done, 1 where no proxy answers or it was not done everywhere, 2 for what
    the proxy refuses.
    """
    path = f"/admin/events/{quote(name, safe='')}{'?dry_run=true' if dry_run else ''}"
    members = _context(context or [])
    told = ask(path, members, expected="purges", url=url, key_variable=admin_key_env)
    if as_json:
        print_json(told)
        return
    for report in told["purges"]:
        _print(report)


def _context(pairs: list[str]) -> dict[str, str]:
    members: dict[str, str] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name or name in members:
            twice = " twice" if name in members else ""
            fail(f"the context is given as KEY=VALUE, not {pair!r}{twice}")
            raise typer.Exit(BAD_INPUT)
        members[name] = value
    return members


def _print(report: dict[str, Any]) -> None:
    """One purge on one line."""
    what = ", ".join(f"{name}={value}" for name, value in report["purged"].items())
    if report["purged"] == {"all": True}:
        what = "everything"
    if report["dry_run"]:
        done = "would become stale" if report["soft"] else "would be purged"
        line = Text(f"{report['matched']} entries {done}: {what}")
    else:
        line = Text("made stale" if report["soft"] else "purged", style="green")
        line.append(f": {what} (purge {report['number']})", style="default")
    out.print(line, soft_wrap=True)
