"""What `workers: auto` comes to."""

import os
from pathlib import Path

import pytest

from proxy.workers.cores import _quotas, usable_cores


def group(directory: Path, quota: str) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "cpu.max").write_text(f"{quota}\n")


def own(tmp_path: Path, line: str) -> Path:
    (tmp_path / "cgroup").write_text(f"1:cpu:/v1\n{line}\n")
    return tmp_path / "cgroup"


def test_the_limits_of_a_group_and_of_those_around_it_are_found(tmp_path: Path) -> None:
    root = tmp_path / "root"
    group(root / "outer" / "inner", "max 100000")
    group(root / "outer", "150000 100000")

    assert list(_quotas(root, own(tmp_path, "0::/outer/inner"))) == [1.5]


def test_a_container_sees_its_own_group_as_the_root(tmp_path: Path) -> None:
    root = tmp_path / "root"
    group(root, "200000 100000")

    assert list(_quotas(root, own(tmp_path, "0::/"))) == [2.0]


@pytest.mark.parametrize("line", ["", "0::/nowhere", "2:memory:/x"])
def test_where_there_is_nothing_to_read_there_is_no_limit(tmp_path: Path, line: str) -> None:
    assert list(_quotas(tmp_path / "root", own(tmp_path, line))) == []
    assert list(_quotas(tmp_path / "root", tmp_path / "absent")) == []


def test_it_is_one_at_least_and_no_more_than_there_are() -> None:
    assert 1 <= usable_cores() <= (os.cpu_count() or 1)
