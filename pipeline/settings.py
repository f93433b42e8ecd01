"""Settings of a command: frozen pydantic models, read from flags over YAML over defaults.

A value comes from the command line, else from the YAML file, else from the model's default. Unknown
keys are refused. `reference` lists every key with its default.

What reads flags and files is imported where it does: processes that decode pictures get their
settings ready-made, and are started by the dozen.
"""

import difflib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import new_class
from typing import TYPE_CHECKING, Any, ClassVar, Self, cast

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo

from pipeline.errors import ConfigError

if TYPE_CHECKING:
    from pydantic_settings import BaseSettings

SECRETS = ("key", "secret", "token", "password", "auth", "credential", "connection_string")


class Section(BaseModel):
    """A frozen group of settings that refuses what it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class CommandConfig(Section):
    """All settings of a command; its docstring heads `--help`."""

    program: ClassVar[str]
    """The file in `jobs/` that reads them."""

    config: str | None = Field(
        default=None, description="YAML file with these keys; flags win over it"
    )

    @classmethod
    def parse(cls, arguments: Sequence[str]) -> Self:
        """The configuration that a command line asks for.

        arguments: as in `sys.argv[1:]`; flags with hyphens, underscores are accepted.
        Raises ConfigError with one sentence; `--help` prints and exits with 0.
        """
        from pydantic_settings import CliSettingsSource, SettingsError

        dashed = [_dashed(argument) for argument in arguments]
        try:
            flags = CliSettingsSource(_flags(cls), cli_parse_args=dashed)()
        except SettingsError as error:
            message = _plain(str(error))
            raise ConfigError(f"{message}; {_hint(cls, message)}--help lists the keys") from error
        return cls.load(flags.get("config"), flags)

    @classmethod
    def load(cls, file: str | None, overrides: Mapping[str, Any]) -> Self:
        """The configuration of a YAML file under `overrides` (nested, as in the file).

        Raises ConfigError with one sentence for an unreadable file or a wrong key or value.
        """
        values = _merged(_read_yaml(file) if file else {}, overrides)
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise ConfigError(_explain(cls, error)) from error

    @classmethod
    def reference(cls) -> str:
        """Every key with its description and default, as YAML."""
        head = f"# Every key of jobs/{cls.program} with its default. Made by `make reference`.\n"
        return head + "\n".join(_reference_lines(cls, 0)) + "\n"

    def to_yaml(self) -> str:
        """The configuration as YAML, for a report: complete, without anything secret."""
        import yaml

        values = self.model_dump(mode="json", exclude={"config"})
        return yaml.safe_dump(_shown(values), sort_keys=False, allow_unicode=True)


def _flags(kind: type[CommandConfig]) -> "type[BaseSettings]":
    """The same fields, as flags."""
    from pydantic_settings import BaseSettings, SettingsConfigDict

    settings = SettingsConfigDict(
        extra="forbid",
        cli_prog_name=kind.program,
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_avoid_json=True,
        cli_hide_none_type=True,
        cli_exit_on_error=False,
    )
    facts = {"model_config": settings, "__doc__": kind.__doc__, "__module__": __name__}
    made = new_class("_Flags", (BaseSettings, kind), exec_body=lambda body: body.update(facts))
    return cast("type[BaseSettings]", made)


def _shown(value: Any, name: str = "") -> Any:
    """The value without secrets: by the name of an option, or by the form of a URI."""
    from pipeline.uris import redact

    if isinstance(value, dict):
        items = cast(dict[str, Any], value).items()
        return {inner: _shown(held, inner) for inner, held in items}
    if isinstance(value, list):
        return [_shown(held, name) for held in cast(list[Any], value)]
    if isinstance(value, str):
        secret = any(word in name.lower() for word in SECRETS)
        return "***" if secret else redact(value)
    return value


def _reference_lines(section: type[Section], depth: int) -> list[str]:
    pad, lines = "  " * depth, list[str]()
    for name, field in section.model_fields.items():
        if name == "config":
            continue
        nested = _section_of(field)
        if nested is not None:
            lines += [f"{pad}# {_first_line(nested)}", f"{pad}{name}:"]
            lines += _reference_lines(nested, depth + 1)
            continue
        default = "# required" if field.is_required() else _scalar(field.default)
        lines += [f"{pad}# {field.description}", f"{pad}{name}: {default}"]
    return lines


def _section_of(field: FieldInfo) -> type[Section] | None:
    options = [field.annotation, *getattr(field.annotation, "__args__", ())]
    found = [kind for kind in options if isinstance(kind, type) and issubclass(kind, Section)]
    return found[0] if found and field.default is not None else None


def _first_line(section: type[Section]) -> str:
    return (section.__doc__ or "").strip().splitlines()[0]


def _scalar(value: Any) -> str:
    return json.dumps(value)  # a tuple becomes a list


def _dashed(argument: str) -> str:
    name, equals, value = argument.partition("=")
    return name.replace("_", "-") + equals + value if name.startswith("--") else argument


def _read_yaml(file: str) -> dict[str, Any]:
    import yaml

    try:
        values = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"cannot read the configuration {file}: {reason}") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"the configuration {file} holds no keys but {type(values).__name__}")
    return cast(dict[str, Any], values)


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    values = dict(below)
    for name, value in above.items():
        old = values.get(name)
        both = isinstance(old, Mapping) and isinstance(value, Mapping)
        values[name] = _merged(cast(Any, old), cast(Any, value)) if both else value
    return values


def _hint(kind: type[Section], message: str) -> str:
    """The flag that was probably meant."""
    flags = [f"--{key.replace('_', '-')}" for key in _all_keys(kind)]
    wrong = next((word for word in message.split() if word.startswith("--")), "")
    close = difflib.get_close_matches(wrong.partition("=")[0], flags, n=1)
    return f"did you mean {close[0]}? " if close and "unrecognized" in message else ""


def _plain(message: str) -> str:
    return " ".join(message.replace("error parsing CLI:", "").split())


def _explain(kind: type[Section], error: ValidationError) -> str:
    """All problems in one sentence, each with its key, the value and what would be right."""
    return "; ".join(_problem(kind, cast(dict[str, Any], item)) for item in error.errors())


def _problem(kind: type[Section], item: dict[str, Any]) -> str:
    key = ".".join(str(part) for part in item["loc"])
    if item["type"] == "extra_forbidden":
        close = difflib.get_close_matches(key, _all_keys(kind), n=1)
        return f"unknown key {key!r}" + (f", did you mean {close[0]!r}?" if close else "")
    if item["type"] == "missing":
        return f"{key} is required (--{key} or in the YAML)"
    message = str(item["msg"]).removeprefix("Value error, ")
    return f"{key}: {message}, not {item['input']!r}" if key else message


def _all_keys(section: type[Section], prefix: str = "") -> list[str]:
    keys = list[str]()
    for name, field in section.model_fields.items():
        keys.append(prefix + name)
        nested = _section_of(field)
        if nested is not None:
            keys += _all_keys(nested, f"{prefix}{name}.")
    return keys
