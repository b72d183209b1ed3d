"""Parameters: one section of params.yaml, read and validated."""

import math
import re
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from stages.common import paths
from stages.common.errors import StageError


class Section(BaseModel):
    """Base of the types that validate YAML: no unknown keys, no silent conversions."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


S = TypeVar("S", bound=Section)


def load(section: str, schema: type[S], path: Path = paths.PARAMS) -> S:
    """Read one section of the parameters.

    Raises StageError that names the file and the parameter at fault.
    """
    return validate(read_yaml(path).get(section), schema, path, section)


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file whose top level is a mapping; raise StageError if it is not one."""
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)  # noqa: S506 (safe)
    except FileNotFoundError:
        raise StageError(f"{path}: not found; run from the root of the repository") from None
    except UnicodeDecodeError as error:
        raise StageError(f"{path}: byte {error.start} is not UTF-8; save it as UTF-8") from None
    except yaml.YAMLError as error:
        raise StageError(f"{path}: not valid YAML: {error}") from None
    if not isinstance(content, dict):
        found = "is empty" if content is None else f"is a {type(content).__name__}"
        raise StageError(f"{path}: must be a mapping of sections, but {found}")
    return content


def validate(content: Any, schema: type[S], path: Path, where: str) -> S:
    """Check `content`, found at the dotted key `where` of `path`, against `schema`."""
    if content is None:
        raise StageError(f"{path}: {where} is missing")
    try:
        return schema.model_validate(content)
    except ValidationError as error:
        problems = (_describe(details, where) for details in error.errors())
        raise StageError(f"{path}: {'; '.join(problems)}") from None


def _describe(details: ErrorDetails, where: str) -> str:
    key = ".".join([where, *map(str, details["loc"])])
    if details["type"] == "missing":
        return f"{key} is missing"
    if details["type"] == "extra_forbidden":
        return f"{key} is not a known key; check its spelling"
    rule = details["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
    # YAML's own spelling, so that the user finds in the file what the message quotes.
    got = yaml.safe_dump(details["input"], default_flow_style=True, width=math.inf).split("\n")[0]
    return f"{key} {rule}, got {got}"


class _Loader(yaml.SafeLoader):
    """YAML as DVC reads it: 1e-3 is a number and a key may not come twice.

    PyYAML alone takes the first for text, and of the second the last value, silently.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: list[Any] = []
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key!r} comes twice", key_node.start_mark
                )
            seen.append(key)
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {
    first: list(resolvers) for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)
