"""Parameters: one section of params.yaml, read and validated."""

from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

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
        # With DVC's own reader: to PyYAML 1e-3 is text, and of a key that comes twice it silently
        # takes the last.
        content = YAML(typ="safe").load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise StageError(f"{path}: not found; run from the root of the repository") from None
    except (YAMLError, ValueError) as error:
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
        line = f" in line {mark.line + 1}" if mark else ""
        raise StageError(f"{path}: not valid YAML{line}: {problem or error}; correct it") from None
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
    return f"{key} {rule}, got {details['input']!r}"
