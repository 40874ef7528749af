"""Orders, bills and the jobs between them: rows and jobs in one transaction, with Django.

    python examples/orders_with_django.py
    OFFLOAD_URL=postgresql://localhost/shop python examples/orders_with_django.py

A project in one file; in yours the settings, the models and the tasks have files of their own. It does what
orders_with_sqlalchemy.py does: the order whose view fails was never placed, and a bill whose job fails was never written.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
from urllib.parse import urlsplit

import django
from django.conf import settings

URL = os.environ.get("OFFLOAD_URL") or f"sqlite:///{tempfile.mkdtemp()}/shop.db"


def database(url: str) -> dict[str, object]:
    """The same database as Django wants it described."""
    parts = urlsplit(url)
    if parts.scheme == "sqlite":
        # Take the right to write at once: a transaction that reads first may find that it can no longer write.
        return {"ENGINE": "django.db.backends.sqlite3", "NAME": parts.path[1:], "OPTIONS": {"transaction_mode": "IMMEDIATE"}}
    return {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": parts.path[1:],
        "HOST": parts.hostname or "",
        "PORT": parts.port or "",
        "USER": parts.username or "",
        "PASSWORD": parts.password or "",
    }


settings.configure(DATABASES={"default": database(URL)}, DEFAULT_AUTO_FIELD="django.db.models.BigAutoField", USE_TZ=True)
django.setup()

from django.db import connection, models, transaction  # noqa: E402 - once the settings are there

from offload import Offload, Retry, Worker, current  # noqa: E402

app = Offload(URL)
app.migrate()  # on SQLite the file is made by Offload: run `offload migrate` before `manage.py migrate`


class Order(models.Model):
    customer = models.CharField(max_length=100)
    billed = models.BooleanField(default=False)

    class Meta:
        app_label = "shop"

    def __str__(self) -> str:
        return f"order of {self.customer}"


class Bill(models.Model):
    order_id = models.BigIntegerField()  # not unique: nothing but the transaction keeps a second bill away

    class Meta:
        app_label = "shop"

    def __str__(self) -> str:
        return f"bill {self.pk}"


@app.task(retry=Retry(initial=0))
def bill(order_id: int) -> int:
    """The bill, the end of this job and the job that sends the letter are one transaction."""
    try:
        with current.transaction(connection):  # opens transaction.atomic() itself
            order = Order.objects.get(pk=order_id)
            order.billed = True
            order.save()
            written = Bill.objects.create(order_id=order_id)
            send_letter.enqueue(written.pk)
            if order.customer == "Cleo" and current.attempt == 1:
                raise RuntimeError("the power fails")
            current.complete(written.pk)
    finally:
        connection.close()  # this thread's; a middleware does it for all tasks, see the guide on web frameworks
    return -1  # nothing that comes after the block counts


@app.task
def send_letter(bill_id: int) -> int:
    return bill_id


def place(customer: str, *, card: bool) -> None:
    """What a view does: the order and its job are one transaction."""
    with transaction.atomic():
        order = Order.objects.create(customer=customer)
        bill.using(connection=connection).enqueue(order.pk)
        if not card:
            raise ValueError(f"the card of {customer} was refused")


async def work() -> None:
    async with app:
        await Worker(app).drain()


def make_tables() -> None:
    """What `manage.py migrate` does in a project: those that are not there yet."""
    there = connection.introspection.table_names()
    with connection.schema_editor() as editor:
        for model in (Order, Bill):
            if model._meta.db_table not in there:  # noqa: SLF001 - documented by Django
                editor.create_model(model)


def main() -> None:
    make_tables()
    for customer, card in (("Ann", True), ("Bob", False), ("Cleo", True)):
        try:
            place(customer, card=card)
        except ValueError as error:
            print(f"rolled back: {error}")
    asyncio.run(work())
    for order in Order.objects.order_by("pk"):
        print(f"{order}: billed {order.billed}, {Bill.objects.filter(order_id=order.pk).count()} bill")
    letters = app.find(task=send_letter.name)
    print(f"{len(letters)} letters, {len(app.find(task=bill.name))} jobs that billed")
    app.close()
    connection.close()


if __name__ == "__main__":
    main()
