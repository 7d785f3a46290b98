"""Whether an object is one of Kubernetes' own, by the schemas published for a version, which allow nothing more."""

from __future__ import annotations

import functools
import json
import re
from importlib.resources import files
from typing import Any

import jsonschema
from referencing import Registry, Resource

VERSION = "1.34.0"


def complaints(manifest: dict[str, Any]) -> list[str]:
    """What is wrong with it; a kind that has no schema is wrong."""
    try:
        validator = _validator(str(manifest.get("kind")), str(manifest.get("apiVersion")))
    except FileNotFoundError:
        return [f"no schema of {manifest.get('apiVersion')} {manifest.get('kind')}"]
    return [f"{error.json_path}: {error.message[:300]}" for error in validator.iter_errors(manifest)]


@functools.cache
def _validator(kind: str, api: str) -> Any:
    group = re.sub(r"^([^./]*)(?:\.[^/]*)?/", r"\1-", api)
    schema = _schema(f"{kind.lower()}-{group}.json")
    return jsonschema.Draft202012Validator(schema.contents, registry=schema @ _definitions())


@functools.cache
def _definitions() -> Any:
    return _schema("_definitions.json") @ Registry()


def _schema(name: str) -> Any:
    directory = files("kubernetes_validate") / "kubernetes-json-schema" / f"v{VERSION}-local-strict"
    return Resource.from_contents(json.loads((directory / name).read_text()))
