"""The command line: `offload`, the same as `python -m offload`.

Each command is a module that is loaded when it is called, so that help and completion answer at once.
"""

from __future__ import annotations

import click

from offload.cli.groups import LazyGroup

COMMANDS = {
    "worker": "Run jobs: start a worker, or several under a supervisor.",
    "demo": "Take the tour: a web site, a worker and a mail server that fails.",
    "enqueue": "Enqueue a job by the name of its task.",
    "jobs": "List, show, cancel, retry and delete jobs.",
    "why": "Say why a job is not running.",
    "queues": "List, pause and resume queues.",
    "limits": "List, set, pause and resume what keys allow.",
    "workers": "List the workers that are alive.",
    "dead": "List, retry and purge dead jobs.",
    "workflows": "List, show and cancel workflows.",
    "batches": "List, show, seal and cancel batches.",
    "schedules": "List, preview, pause, resume, run and remove schedules.",
    "doctor": "Say what is wrong, or could be better, with advice.",
    "migrate": "Bring the broker's schema to this version.",
}


@click.group(cls=LazyGroup, elsewhere=COMMANDS, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="offload", message="offload %(version)s")
def main() -> None:
    """Background jobs that start on one SQLite file and lose nothing.

    The app is MODULE:APP, from the command line, the environment variable OFFLOAD_APP, or `app` under [tool.offload] in the pyproject.toml
    of the working directory. Commands that only look at the broker also take --url.
    """
