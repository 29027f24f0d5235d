"""The files around the code keep their promises: Makefile, image, compose, deploy, versions."""

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import proxy

ROOT = Path(__file__).resolve().parents[2]
SKIPPED = {".git", ".venv", ".cache", "build", "dist", "node_modules", "__pycache__"}
COMPOSE_FILES = [
    ROOT / "docker-compose.yml",
    *sorted((ROOT / "deploy" / "compose").glob("*.yml")),
]


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def pyproject() -> dict[str, Any]:
    return tomllib.loads(text("pyproject.toml"))


def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(text(name)))


def project_files() -> Iterator[Path]:
    for directory, names, files in os.walk(ROOT):
        names[:] = [
            name
            for name in names
            if name not in SKIPPED and not name.endswith(("_cache", ".hypothesis"))
        ]
        yield from (Path(directory) / file for file in files)


# ---- Makefile, CI, scripts ----


def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z][a-z-]*):", text("Makefile"), re.MULTILINE))


@pytest.mark.parametrize("name", ["run", "test", "check", "demo", "bench", "clean", "help"])
def test_make_has_the_words_that_people_type(name: str) -> None:
    assert name in make_targets()


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs"])
def test_every_make_command_in_the_docs_exists(name: str) -> None:
    path = ROOT / name
    pages = sorted(path.glob("*.md")) if path.is_dir() else [path]
    code = re.compile(r"```.*?```|`[^`\n]+`", re.DOTALL)
    named = {
        target
        for page in pages
        for span in code.findall(page.read_text(encoding="utf-8"))
        for target in re.findall(r"\bmake ([a-z][a-z-]+)", span)
    }
    assert named <= make_targets()


def test_help_lists_every_target_that_is_for_people() -> None:
    assert shutil.which("make"), "the tests are started by make"
    listed = subprocess.run(
        ["make", "--no-print-directory", "help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    for target in ("run", "test", "check", "demo", "bench", "clean"):
        assert re.search(rf"^  make {target}\s+\S", listed, re.MULTILINE), target


def test_ci_runs_make_test() -> None:
    lines = [line for line in text(".ci/run").splitlines() if line and not line.startswith("#")]
    assert lines[0] == "set -euo pipefail"
    assert lines[-1].startswith("exec make test")
    assert os.access(ROOT / ".ci/run", os.X_OK)


def test_pytest_has_the_last_word_in_make_test() -> None:
    recipe = re.search(r"^test: .*\n((?:\t.*\n)+)", text("Makefile"), re.MULTILINE)
    assert recipe is not None
    assert "-m pytest" in recipe[1].splitlines()[-1]


@pytest.mark.parametrize(
    "script", sorted((ROOT / "scripts").glob("*.sh")), ids=lambda path: path.name
)
def test_scripts_stop_at_the_first_error_and_parse(script: Path) -> None:
    assert os.access(script, os.X_OK)
    assert "set -euo pipefail" in script.read_text(encoding="utf-8")
    subprocess.run(["bash", "-n", str(script)], check=True)


# ---- versions and dependencies ----


def test_one_version_everywhere() -> None:
    version = proxy.__version__
    assert f"ARG VERSION={version}\n" in text("Dockerfile")
    assert f"image: magic-proxy:{version}\n" in text("deploy/kubernetes/magic-proxy.yaml")
    assert pyproject()["tool"]["hatch"]["version"]["path"] == "proxy/__init__.py"


def direct_dependencies() -> list[Requirement]:
    return [Requirement(line) for line in pyproject()["project"]["dependencies"]]


def test_every_dependency_has_a_lower_bound_and_no_other() -> None:
    everything = [
        *direct_dependencies(),
        *(Requirement(line) for line in pyproject()["dependency-groups"]["dev"]),
    ]
    for requirement in everything:
        assert [item.operator for item in requirement.specifier] == [">="], requirement


def test_every_dependency_has_its_reason_in_the_architecture() -> None:
    page = text("docs/architecture.md")
    named = dict(re.findall(r"`([A-Za-z][\w-]*)` ≥ ([\d.]+)", page))
    declared = {
        requirement.name: next(iter(requirement.specifier)).version
        for requirement in [
            *direct_dependencies(),
            *(Requirement(line) for line in pyproject()["dependency-groups"]["dev"]),
            *(Requirement(line) for line in pyproject()["build-system"]["requires"]),
        ]
    }
    assert named == declared


def pinned(name: str) -> dict[str, Version]:
    pins = re.findall(r"^([\w.-]+)==([^\s;]+)", text(name), re.MULTILINE)
    return {package: Version(version) for package, version in pins}


def test_the_image_pins_every_dependency_within_its_bound() -> None:
    pins = pinned("requirements/runtime.txt")
    for requirement in direct_dependencies():
        assert requirement.specifier.contains(pins[requirement.name.lower()]), requirement
    assert "hatchling" in pinned("requirements/build.txt")


@pytest.mark.parametrize("name", ["requirements/runtime.txt", "requirements/build.txt"])
def test_every_pin_has_a_hash(name: str) -> None:
    blocks = re.split(r"\n(?=\S)", text(name))
    pins = [block for block in blocks if "==" in block.splitlines()[0]]
    assert pins
    assert all("--hash=sha256:" in block for block in pins)


def test_no_file_names_a_package_index_or_image_registry() -> None:
    hosts = [
        "pypi" + ".org",
        "pythonhosted" + ".org",
        "docker" + ".io",
        "docker" + ".com",
        "ghcr" + ".io",
        "gcr" + ".io",
        "quay" + ".io",
        "registry.k8s" + ".io",
        "npmjs" + ".org",
        "--index" + "-url",
        "--extra-index" + "-url",
    ]
    found = [
        f"{path.relative_to(ROOT)}: {host}"
        for path in project_files()
        for host in hosts
        if host.encode() in path.read_bytes()
    ]
    assert found == []


def test_no_source_file_is_longer_than_600_lines() -> None:
    lengths = {
        str(path.relative_to(ROOT)): len(path.read_bytes().splitlines())
        for path in (ROOT / "proxy").rglob("*.py")
    }
    assert {path: length for path, length in lengths.items() if length > 600} == {}


# ---- the image ----


def dockerfile_stages() -> list[list[str]]:
    """The instructions of each stage, continuation lines joined."""
    joined = re.sub(r"\\\n\s*", "", text("Dockerfile"))
    lines = [line for line in joined.splitlines() if line and not line.startswith("#")]
    starts = [index for index, line in enumerate(lines) if line.startswith("FROM ")]
    ends = [*starts[1:], len(lines)]
    return [lines[start:end] for start, end in zip(starts, ends, strict=True)]


def test_the_last_stage_is_lean_and_not_root() -> None:
    stages = dockerfile_stages()
    assert len(stages) > 1
    last = stages[-1]
    users = [line.removeprefix("USER ") for line in last if line.startswith("USER ")]
    assert users
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", users[-1])
    assert not re.search(r"apt-get|apk |gcc|build-essential|pip ", "\n".join(last))


def test_the_image_serves_and_says_whether_it_is_healthy() -> None:
    last = "\n".join(dockerfile_stages()[-1])
    assert 'ENTRYPOINT ["magic-proxy"]' in last
    assert '"serve", "--config", "/etc/magic-proxy/proxy_config.yaml"' in last
    assert "/healthz" in next(line for line in last.splitlines() if line.startswith("HEALTHCHECK"))
    assert 'VOLUME ["/var/lib/magic-proxy"]' in last


def test_what_the_image_copies_is_sent_to_the_builder() -> None:
    allowed = {line.removeprefix("!").rstrip("/") for line in text(".dockerignore").splitlines()}
    for stage in dockerfile_stages():
        for line in stage:
            if line.startswith("COPY ") and "--from=" not in line:
                for source in line.split()[1:-1]:
                    assert source.rstrip("/") in allowed, source
                    assert (ROOT / source).exists(), source


# ---- compose ----


def compose() -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load(text("docker-compose.yml"))
    return content


@pytest.mark.parametrize("service", ["proxy", "redis"])
def test_compose_services_are_watched_and_confined(service: str) -> None:
    content = compose()["services"][service]
    assert content["healthcheck"]["test"][0] == "CMD"
    assert content["read_only"] is True
    assert content["cap_drop"] == ["ALL"]
    assert content["security_opt"] == ["no-new-privileges:true"]
    assert content["restart"] == "unless-stopped"
    assert "privileged" not in content


def test_compose_waits_for_redis_and_publishes_on_this_machine_only() -> None:
    services = compose()["services"]
    assert services["proxy"]["depends_on"] == {"redis": {"condition": "service_healthy"}}
    assert all(port.startswith("127.0.0.1:") for port in services["proxy"]["ports"])
    assert "ports" not in services["redis"]
    assert services["proxy"]["environment"]["REDIS_URL"] == "redis://redis:6379/0"


def test_compose_names_every_volume_that_it_mounts() -> None:
    content = compose()
    mounted = {
        volume.partition(":")[0]
        for service in content["services"].values()
        for volume in service["volumes"]
    }
    assert {name for name in mounted if not name.startswith(".")} == set(content["volumes"])
    for name in mounted - set(content["volumes"]):
        assert (ROOT / name).exists(), name


def test_redis_is_configured_as_a_bounded_evicting_cache() -> None:
    volumes = compose()["services"]["redis"]["volumes"]
    assert any(volume.startswith("./deploy/redis.conf:") for volume in volumes)
    settings = dict(
        line.split(maxsplit=1)
        for line in text("deploy/redis.conf").splitlines()
        if line and not line.startswith("#")
    )
    assert settings["maxmemory-policy"] == "allkeys-lru"
    assert int(settings["maxmemory"].removesuffix("mb")) > 0
    assert settings["stop-writes-on-bgsave-error"] == "no"


@pytest.mark.parametrize("path", COMPOSE_FILES[1:], ids=lambda path: path.name)
def test_compose_variants_change_services_that_exist(path: Path) -> None:
    variant = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert set(variant["services"]) <= set(compose()["services"])
    assert f"-f deploy/compose/{path.name}" in path.read_text(encoding="utf-8")


def test_make_check_looks_at_every_compose_file() -> None:
    listed = re.search(r"^YAML_FILES = \$\(wildcard (.+)\)$", text("Makefile"), re.MULTILINE)
    assert listed is not None
    found = {path for pattern in listed[1].split() for path in ROOT.glob(pattern)}
    assert found == set(COMPOSE_FILES)


# ---- Kubernetes, systemd ----


def kubernetes() -> dict[tuple[str, str], dict[str, Any]]:
    return {
        (item["kind"], item["metadata"]["name"]): item
        for item in documents("deploy/kubernetes/magic-proxy.yaml")
    }


@pytest.mark.parametrize("name", ["magic-proxy", "magic-proxy-redis"])
def test_kubernetes_parts_fit_together(name: str) -> None:
    parts = kubernetes()
    deployment, service = parts["Deployment", name], parts["Service", name]
    template = deployment["spec"]["template"]
    labels = template["metadata"]["labels"]
    assert deployment["spec"]["selector"]["matchLabels"] == labels
    assert service["spec"]["selector"] == labels
    (container,) = template["spec"]["containers"]
    ports = {port["name"] for port in container["ports"]}
    assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports
    volumes = {volume["name"] for volume in template["spec"]["volumes"]}
    assert {mount["name"] for mount in container["volumeMounts"]} == volumes
    assert template["spec"]["securityContext"]["runAsNonRoot"] is True
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert {"livenessProbe", "readinessProbe"} <= set(container)


def test_kubernetes_runs_the_user_of_the_image() -> None:
    spec = kubernetes()["Deployment", "magic-proxy"]["spec"]["template"]["spec"]
    context = spec["securityContext"]
    assert f"USER {context['runAsUser']}:{context['runAsGroup']}" in text("Dockerfile")


def test_systemd_gives_answers_under_way_time_to_finish() -> None:
    unit = text("deploy/systemd/magic-proxy.service")
    stop = re.search(r"^TimeoutStopSec=(\d+)$", unit, re.MULTILINE)
    assert stop is not None
    assert int(stop[1]) > 30
    assert "ExecReload=/bin/kill -HUP $MAINPID" in unit


def test_systemd_starts_with_remarks_and_gives_up_on_mistakes() -> None:
    """`check` exits with 1 for a warning, `serve` with 2 for a mistake."""
    unit = text("deploy/systemd/magic-proxy.service")
    assert re.search(r"^ExecStartPre=-\S+/magic-proxy check ", unit, re.MULTILINE)
    assert "\nRestartPreventExitStatus=2\n" in unit


# ---- imports and dependencies ----

# Chosen by name in uvicorn's settings, or come with their framework.
NOT_IMPORTED = {"httptools"}
# Part of the interface of what is declared: whoever has the one has the other.
COMPANIONS = {
    "starlette": "fastapi",
    "yarl": "aiohttp",
    "multidict": "aiohttp",
    "pydantic_core": "pydantic",
    "httpcore": "httpx",
}
# Not a dependency of the product: the demo says how to install it.
OPTIONAL = {"openai"}


def imported_modules() -> set[str]:
    """The top-level modules that proxy/ imports, but for the standard library and itself."""
    names: set[str] = set()
    for path in (ROOT / "proxy").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, ast.Import):
                names |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module is not None:
                names.add(node.module.partition(".")[0])
    return names - set(sys.stdlib_module_names) - {"proxy"}


def test_what_is_imported_is_declared_and_the_reverse() -> None:
    declared = {canonicalize_name(requirement.name) for requirement in direct_dependencies()}
    distributions = packages_distributions()
    imported = {
        canonicalize_name(distributions[name][0])
        for name in imported_modules() - OPTIONAL - set(COMPANIONS)
    }
    assert imported | NOT_IMPORTED == declared
