"""Every method does what the paper or the released code that it is named after does."""

import pytest

from lotion_theory.methods import names
from tests.source_checks import CHECKS


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: f"{check.method}: {check.form}")
def test_the_method_is_its_source_s(check):
    if not check.there:
        pytest.skip(f"{check.needs} is not installed")
    assert 0 <= check.measure() <= check.limit


def test_every_training_method_is_held_to_something():
    assert {check.method for check in CHECKS} >= set(names()) - {"ptq"}
