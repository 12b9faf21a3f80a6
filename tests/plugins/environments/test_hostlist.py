"""Slurm's notation for many host names."""

from __future__ import annotations

import shutil
import subprocess
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fulmen.plugins.environments.hostlist import hosts_in


@pytest.mark.parametrize(
    ("text", "hosts"),
    [
        ("", []),
        ("alpha", ["alpha"]),
        ("alpha,beta", ["alpha", "beta"]),
        ("alpha, beta,", ["alpha", "beta"]),
        ("alpha beta", ["alpha", "beta"]),
        ("node[1-3]", ["node1", "node2", "node3"]),
        ("node[001-003,7],gpu-5-[1,3]", ["node001", "node002", "node003", "node7", "gpu-5-1", "gpu-5-3"]),
        ("n[9-11]", ["n9", "n10", "n11"]),
        ("n[09-11]", ["n09", "n10", "n11"]),
        ("n[008-010]", ["n008", "n009", "n010"]),
        ("rack[0-1]n[00-01]", ["rack0n00", "rack0n01", "rack1n00", "rack1n01"]),
        ("a[1,2]-ib,b", ["a1-ib", "a2-ib", "b"]),
        ("[1-2]", ["1", "2"]),
        ("host-1.example.org,10.0.0.7", ["host-1.example.org", "10.0.0.7"]),
    ],
)
def test_hosts_are_written_out(text, hosts):
    assert list(hosts_in(text)) == hosts


@pytest.mark.parametrize("text", ["n[1", "n1]", "n[]", "n[3-1]", "n[a-b]", "n[1-2-3]", "n[[1]]", "a,n[1,]", "n[-1]"])
def test_what_cannot_be_read_is_refused(text):
    with pytest.raises(ValueError, match="The list of hosts"):
        list(hosts_in(text))


# ---- against an expansion of our own, made together with the notation
NAMES = st.text("abcxyz-.", min_size=1, max_size=4)


@st.composite
def brackets(draw):
    """Contents of a bracket, and the numbers they stand for."""
    notations, numbers = [], []
    for _ in range(draw(st.integers(1, 3))):
        first, length = draw(st.integers(0, 120)), draw(st.integers(0, 12))
        width = draw(st.integers(1, 4))
        text = str(first).rjust(width, "0")
        notations.append(text if length == 0 else f"{text}-{first + length}")
        numbers += [str(number).rjust(len(text), "0") for number in range(first, first + length + 1)]
    return f"[{','.join(notations)}]", numbers


@st.composite
def names(draw):
    """A name with up to two brackets, and the hosts it stands for."""
    parts = [(text := draw(NAMES), [text])]
    for _ in range(draw(st.integers(0, 2))):
        parts.append(draw(brackets()))
        if draw(st.booleans()):
            parts.append((text := draw(NAMES), [text]))
    return "".join(notation for notation, _ in parts), ["".join(c) for c in product(*(hosts for _, hosts in parts))]


@given(st.lists(names(), max_size=4), st.sampled_from([",", ", ", " "]))
@settings(max_examples=150, deadline=None)
def test_every_list_is_written_out_as_it_was_meant(entries, separator):
    text = separator.join(notation for notation, _ in entries)

    assert list(hosts_in(text)) == [host for _, hosts in entries for host in hosts]


@pytest.mark.skipif(shutil.which("scontrol") is None, reason="needs Slurm's `scontrol`")
@pytest.mark.parametrize(
    "text", ["node[001-003,7],gpu-5-[1,3]", "rack[0-1]n[00-02]", "n[09-11],m", "n[99-101],n[099-101]", "a,b", "n[2,1]"]
)
def test_slurm_itself_agrees(tmp_path, monkeypatch, text):
    settings_file = tmp_path / "slurm.conf"
    settings_file.write_text("ClusterName=test\nSlurmctldHost=localhost\n")
    monkeypatch.setenv("SLURM_CONF", str(settings_file))

    done = subprocess.run(
        ["scontrol", "show", "hostnames", text], capture_output=True, text=True, timeout=30, check=True
    )

    assert list(hosts_in(text)) == done.stdout.split()
