"""YAML as plain values. Whoever wrote it, a bad document is one sentence, also one made to exhaust the parser."""

from __future__ import annotations

import yaml

from agent.core.errors import Invalid, cut

_MAX_BYTES = 16 << 20  # far beyond any plan; a document is parsed in Python, some 1 MB/s


def load_documents(text: str) -> list[object]:
    """Parse every document of a YAML stream (an empty one is None).

    Raises:
        Invalid: it is no YAML, is nested too deep or is too big.
    """
    if len(text) > _MAX_BYTES:
        raise Invalid(f"it is longer than {_MAX_BYTES >> 20} MiB")
    try:
        return list(yaml.safe_load_all(text))
    except RecursionError as error:
        raise Invalid("it is nested too deep") from error
    except (yaml.YAMLError, ValueError) as error:  # ValueError: dates that are none
        raise Invalid(cut(error)) from error


def load_document(text: str) -> object:
    """Parse YAML with one document; None if it is empty.

    Raises:
        Invalid: as `load_documents`, or there are several.
    """
    found = load_documents(text)
    if len(found) > 1:
        raise Invalid("it has more than one document")
    return found[0] if found else None
