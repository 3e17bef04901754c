"""The options where people write them most: as the README says, as the plugin before this one wanted it, everywhere."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.stress.arrangements import Arrange, block_of_the_plugin_before, global_file, ground, missing, readme
from tests.support.opencode import VERSION

pytestmark = pytest.mark.opencode


@pytest.mark.parametrize(
    "arrange",
    [
        readme,
        pytest.param(block_of_the_plugin_before, marks=pytest.mark.matrix),
        pytest.param(global_file, marks=pytest.mark.matrix),
    ],
)
def test_each_of_the_nine_options_has_its_effect(tmp_path: Path, arrange: Arrange) -> None:
    with ground(tmp_path, VERSION) as place:
        assert missing(place, arrange) == []
