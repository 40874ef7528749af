"""Orders, bills and the jobs between them: rows and jobs in one transaction, with SQLAlchemy.

    python examples/orders_with_sqlalchemy.py
    OFFLOAD_URL=postgresql://localhost/shop python examples/orders_with_sqlalchemy.py

places three orders. The second one's transaction rolls back: no order, no job. The job that bills the third fails at its first attempt,
after it has written the bill: no bill stays of it. In the end each order has one bill, and each bill one letter.
"""

from __future__ import annotations

import asyncio
import os
import tempfile

from sqlalchemy import create_engine, func, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from offload import Offload, Retry, Worker, current

URL = os.environ.get("OFFLOAD_URL") or f"sqlite:///{tempfile.mkdtemp()}/shop.db"

app = Offload(URL)
app.migrate()  # on SQLite the file is made by Offload, and the shop's tables come beside the jobs
engine = create_engine(URL.replace("postgresql://", "postgresql+psycopg://"))


class Base(DeclarativeBase): ...


class Order(Base):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    customer: Mapped[str]
    billed: Mapped[bool] = mapped_column(default=False)


class Bill(Base):
    __tablename__ = "bills"
    id: Mapped[int] = mapped_column(primary_key=True)
    order_id: Mapped[int]  # not unique: nothing but the transaction keeps a second bill away


@app.task(retry=Retry(initial=0))
def bill(order_id: int) -> int:
    """The bill, the end of this job and the job that sends the letter are one transaction."""
    with Session(engine) as session, current.transaction(session):
        order = session.get_one(Order, order_id)
        order.billed = True
        written = Bill(order_id=order_id)
        session.add(written)
        session.flush()
        send_letter.enqueue(written.id)
        if order.customer == "Cleo" and current.attempt == 1:
            raise RuntimeError("the power fails")
        current.complete(written.id)
    return -1  # nothing that comes after the block counts


@app.task
def send_letter(bill_id: int) -> int:
    return bill_id


def place(customer: str, *, card: bool) -> None:
    """The order and its job are one transaction."""
    with Session(engine) as session, session.begin():
        order = Order(customer=customer)
        session.add(order)
        session.flush()
        bill.using(connection=session).enqueue(order.id)
        if not card:
            raise ValueError(f"the card of {customer} was refused")


async def work() -> None:
    async with app:
        await Worker(app).drain()


def main() -> None:
    Base.metadata.create_all(engine)
    for customer, card in (("Ann", True), ("Bob", False), ("Cleo", True)):
        try:
            place(customer, card=card)
        except ValueError as error:
            print(f"rolled back: {error}")
    asyncio.run(work())
    with Session(engine) as session:
        orders = session.scalars(select(Order).order_by(Order.id)).all()
        for order in orders:
            bills = session.scalar(select(func.count()).where(Bill.order_id == order.id))
            print(f"order of {order.customer}: billed {order.billed}, {bills} bill")
    letters = app.find(task=send_letter.name)
    print(f"{len(letters)} letters, {len(app.find(task=bill.name))} jobs that billed")
    app.close()
    engine.dispose()


if __name__ == "__main__":
    main()
