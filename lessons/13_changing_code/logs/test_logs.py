"""Does the code that is about to be deployed fit what is half-way? python -m pytest logs"""

import json
from pathlib import Path

import pytest

import app as app  # the code that is about to be deployed
from rehearsal import rehearse

LOGS = sorted(Path(__file__).parent.glob("*.json"))


@pytest.mark.parametrize("log", LOGS, ids=lambda path: path.stem)
def test_the_code_fits_this_log(log: Path) -> None:
    rehearse(json.loads(log.read_text()))
