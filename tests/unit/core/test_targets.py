"""Request targets: which paths could lead out of the root."""

from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.targets import leaves_root

NAMES = st.text("abcXYZ019-_~ éж", min_size=1, max_size=8)


def coded(text: str, times: int) -> str:
    for _ in range(times):
        text = quote(text, safe="")
    return text


@given(st.lists(NAMES, max_size=5), st.integers(0, 2))
def test_B60_ordinary_paths_stay(names: list[str], times: int) -> None:
    path = "/" + "/".join(coded(name, max(times, 1)) for name in names)

    assert not leaves_root(path)


@given(
    st.lists(NAMES, max_size=3),
    st.sampled_from(
        [
            ".",
            "..",
            "..;x=1",
            "..\0",
            "%2e.",
            "\xc0\xae\xc0\xae".encode("latin-1").decode("latin-1"),
        ]
    ),
    st.sampled_from(["/", "\\", "%2f", "%5C"]),
)
def test_B60_a_dot_segment_anywhere_leaves(names: list[str], dots: str, slash: str) -> None:
    parts = [quote(name, safe="") for name in names]
    for place in range(len(parts) + 1):
        path = "/" + slash.join([*parts[:place], dots, *parts[place:]])
        assert leaves_root(path)


@pytest.mark.parametrize(
    "path",
    [
        *("/a.b", "/...", "/..a", "/a..", "/.well-known", "/a;b=..", "/a%2Fb", "//x", "/a//b", ""),
        *("/files/%E2%82%AC", "/a%00b", "/50%", "/%zz", "/%25", "/a%252Fb", "/x%c0%c0", "/\xe9"),
    ],
)
def test_B60_what_only_looks_like_it_stays(path: str) -> None:
    assert not leaves_root(path)
