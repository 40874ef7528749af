"""The contract that every broker keeps, as tests to inherit.

A broker is tested by a class of a few lines; `pip install anyio` brings the pytest plugin that runs it:

    class TestMyBroker(BrokerContract):
        @pytest.fixture
        async def broker(self, clock: TestClock) -> AsyncIterator[Broker]:
            broker = MyBroker.connect("my://localhost/tests", clock)
            await broker.open()
            yield broker
            await broker.close()

The broker must be empty and must go by the `clock` it is given. What it does not declare in `features` is skipped, once it has
been shown to be refused.
"""

from __future__ import annotations

from offload.testing.contract.batches import Batches
from offload.testing.contract.control import Control
from offload.testing.contract.delivery import Delivery
from offload.testing.contract.families import Families
from offload.testing.contract.graphs import Graphs
from offload.testing.contract.lines import Lines
from offload.testing.contract.missing import Missing
from offload.testing.contract.orders import Orders
from offload.testing.contract.outcomes import Outcomes
from offload.testing.contract.records import Records
from offload.testing.contract.schedules import Schedules
from offload.testing.contract.sessions import Sessions
from offload.testing.contract.slots import Slots
from offload.testing.contract.tokens import Tokens
from offload.testing.contract.turns import Turns
from offload.testing.contract.unique import Uniqueness
from offload.testing.contract.workflows import Workflows

__all__ = ["BrokerContract"]


class BrokerContract(
    Delivery,
    Lines,
    Outcomes,
    Sessions,
    Uniqueness,
    Orders,
    Slots,
    Tokens,
    Turns,
    Schedules,
    Families,
    Missing,
    Workflows,
    Batches,
    Graphs,
    Control,
    Records,
):
    """Every sentence of the contract. Give it an async fixture `broker`."""
