"""Addresses on the Hub."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapterhub.errors import InputError
from adapterhub.hub import HubLocation, parse_url

COMMIT = "3f2c91d0" * 5
names = st.from_regex(r"[a-z0-9]+(-[a-z0-9]+)*", fullmatch=True).filter(lambda name: len(name) < 40)


@given(st.tuples(names, names), st.sampled_from([COMMIT, "main", "v1.0"]), st.lists(names, max_size=3))
def test_parse_url_reads_back_what_url_writes(repo: tuple[str, str], revision: str, path: list[str]):
    location = HubLocation("/".join(repo), revision, "/".join(path))
    assert parse_url(location.url) == location


def test_the_parts_of_an_address():
    location = parse_url(f"hf://acme/tasks@{COMMIT}/language/grammar", pinned=True)
    assert location == HubLocation("acme/tasks", COMMIT, "language/grammar")
    assert location.pinned
    assert parse_url("hf://acme/tasks") == HubLocation("acme/tasks", "main", "")
    assert parse_url("hf://acme/tasks/language/") == HubLocation("acme/tasks", "main", "language")


@pytest.mark.parametrize(
    "url",
    [
        "hf://acme/tasks/language",
        "hf://acme/tasks@main/language",
        f"hf://acme/tasks@{COMMIT[:39]}/language",
        f"hf://acme/tasks@{COMMIT.upper()}/language",
    ],
)
def test_what_is_not_pinned_is_refused_where_a_pin_is_needed(url: str):
    parse_url(url)
    with pytest.raises(InputError, match=r"must be pinned to a commit.*Write hf://acme/tasks@<commit>/language; "):
        parse_url(url, pinned=True)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "acme/tasks",
        "https://example.org/acme/tasks",
        "hf://acme",
        "hf://acme/tasks@",
        "hf://acme/tasks@main/../x",
        "hf://acme/tasks@main//x",
        "hf://acme/tasks@..",
        "hf://acme/ta sks",
        "hf://acme/tasks@main/a@b",
        "hf://acme/tasks@main\n",
    ],
)
def test_malformed_addresses(url: str):
    with pytest.raises(InputError, match=r"Found `"):
        parse_url(url)
