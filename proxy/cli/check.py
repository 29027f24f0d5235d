"""`magic-proxy check`: is this file right, and does it do what was meant?"""

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from proxy.cli.options import CONFIG_VARIABLE, JsonOutput, settings_file
from proxy.cli.output import fail, note, out, print_json, warn
from proxy.errors import Mistake, SettingsError
from proxy.runtime.certificates import check_certificates
from proxy.settings.lint import Finding, Severity, lint
from proxy.settings.load import load

MISTAKES = 2
WARNINGS = 1


def check(
    file: Annotated[
        Path | None,
        typer.Argument(
            envvar=CONFIG_VARIABLE,
            help="Settings file; default: proxy_config.yaml here, else the defaults.",
        ),
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Fail on notes too.")] = False,
    as_json: JsonOutput = False,
) -> None:
    """Validate and lint the settings.

    Exits with 0 if all is well, 1 for warnings (with --strict also for notes), 2 for mistakes
    that keep the proxy from starting.
    """
    path = settings_file(file)
    try:
        loaded = load(path, os.environ)
        check_certificates(loaded.settings)
    except SettingsError as error:
        _report_mistakes(error.mistakes, as_json=as_json)
        raise typer.Exit(MISTAKES) from None
    findings = lint(loaded.settings, loaded.place_of)
    ok = not any(strict or finding.severity is Severity.WARNING for finding in findings)
    _report_findings(path, findings, ok=ok, as_json=as_json)
    if not ok:
        raise typer.Exit(WARNINGS)


def _report_mistakes(mistakes: list[Mistake], *, as_json: bool) -> None:
    if as_json:
        print_json({"ok": False, "mistakes": [_mistake(mistake) for mistake in mistakes]})
        return
    for mistake in mistakes:
        fail(str(mistake))


def _mistake(mistake: Mistake) -> dict[str, Any]:
    return {
        "message": mistake.message,
        "path": mistake.path,
        "file": mistake.file,
        "line": mistake.line,
        "column": mistake.column,
    }


def _report_findings(
    path: Path | None, findings: list[Finding], *, ok: bool, as_json: bool
) -> None:
    if as_json:
        print_json(
            {
                "ok": ok,
                "findings": [
                    {
                        "severity": finding.severity.value,
                        "code": finding.code,
                        "message": finding.message,
                        "path": finding.path,
                        "file": finding.file,
                        "line": finding.line,
                        "column": finding.column,
                    }
                    for finding in findings
                ],
            }
        )
        return
    for finding in findings:
        say = warn if finding.severity is Severity.WARNING else note
        say(str(finding))
    if not findings:
        shown = path if path is not None else "the defaults"
        out.print(f"[green]ok[/green]: {shown}", soft_wrap=True)
