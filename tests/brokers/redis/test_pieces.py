"""What SQLite works off in pieces as the reference does at once, Redis does too: the same stories on the `broker` of this folder."""

from __future__ import annotations

import pytest
from tests.brokers.sqlite import test_pieces as pieces

pytestmark = pytest.mark.anyio

test_it_comes_to_the_same_as_all_at_once = pieces.test_it_comes_to_the_same_as_all_at_once
