"""Finds out from where a child process can import the app."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from typing import TYPE_CHECKING, Any, NamedTuple

from offload.errors import BadDeclaration

if TYPE_CHECKING:
    from offload.app import Offload


class Source(NamedTuple):
    """An importable place: `attribute` of `module`, which for a program run as a script is loaded from `file`."""

    module: str
    attribute: str
    file: str | None = None


def source_of(app: Offload) -> Source | None:
    """Where `app` stands as an attribute of an imported module; None when it stands nowhere."""
    for name, module in tuple(sys.modules.items()):
        for attribute, value in tuple(getattr(module, "__dict__", {}).items()):
            if value is app:
                return _main(attribute) if name == "__main__" else Source(name, attribute)
    return None


def _main(attribute: str) -> Source | None:
    main = sys.modules["__main__"]
    if main.__spec__ is not None:
        return Source(main.__spec__.name, attribute)
    file = getattr(main, "__file__", None)
    return None if file is None else Source(file.rpartition("/")[2].removesuffix(".py"), attribute, file)


def load(source: Source) -> Offload:
    """Import the app in this process. Raises what the import raises, BadDeclaration when there is no app."""
    if source.file is None:
        module = importlib.import_module(source.module)
    else:
        spec = importlib.util.spec_from_file_location(source.module, source.file)
        if spec is None or spec.loader is None:
            raise BadDeclaration(f"{source.file} cannot be imported as a module")
        module = importlib.util.module_from_spec(spec)
        sys.modules[source.module] = module
        spec.loader.exec_module(module)
    app: Any = module
    for part in source.attribute.split("."):
        app = getattr(app, part)
    return app
