"""The coherence protocol, explored: right as it is, and wrong with any one rule taken out (see coherence_model)."""

from __future__ import annotations

import pytest

import coherence_model as model

#: The larger spaces are explored so far here; `python tests/coherence_model.py` explores them to their ends.
MOST = 40_000


@pytest.mark.parametrize("name", model.SAFE)
def test_no_read_in_any_reachable_state_is_older_than_promised(name: str) -> None:
    found = model.explore(model.SAFE[name], MOST)
    assert found.violation is None, "\n".join(found.trace)
    assert found.whole or found.states >= MOST


@pytest.mark.parametrize("rule", model.MUTATIONS)
def test_each_rule_is_needed(rule: str) -> None:
    found = model.explore(model.without(rule), 2 * MOST)
    assert found.violation is not None, f"nothing goes wrong without the rule {rule!r} in {found.states} states"
