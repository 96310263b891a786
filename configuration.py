"""One configuration for every process: flag, then environment variable, then alignfed.toml, then default.

Knows which sections there are and says what is wrong with them; what a setting means is its own package's knowledge.
Relative paths are relative to the current directory.
"""

import difflib
import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, Field, ValidationError
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, EnvSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict
from pydantic_settings.exceptions import SettingsError

from base_model.settings import BaseModelSettings
from broker.security import SecuritySettings
from broker.settings import PORT, TLS_PORT, BrokerSettings
from coordinator.settings import CoordinatorSettings
from edge_node.settings import EdgeSettings
from schemas.topics import Name

DEFAULT_FILE = Path("alignfed.toml")
PREFIX = "ALIGNFED_"
DELIMITER = "__"
ADDRESS = re.compile(r"(?:\[([^][\s]+)\]|([^][:/\s]+))(?::([0-9]{1,5}))?")  # [IPv6] or host, port

Values = Mapping[str, Any]


class ConfigurationError(ValueError):
    """Settings that cannot be used; every line says where one was set and what is allowed."""


class Configuration(BaseSettings):
    """All settings; a process reads the sections that it needs."""

    model_config = SettingsConfigDict(
        frozen=True, extra="forbid", env_prefix=PREFIX, env_nested_delimiter=DELIMITER, env_parse_none_str="none"
    )

    federation: Name = Field(default="home", description="who trains together; the third level of every topic")
    base_model: BaseModelSettings = Field(default=BaseModelSettings(), description="the frozen LLM")
    broker: BrokerSettings = Field(default=BrokerSettings(), description="where the broker is and how to log in")
    security: SecuritySettings = Field(default=SecuritySettings(), description="who may take part")
    coordinator: CoordinatorSettings = Field(default=CoordinatorSettings(), description="a coordinator's own settings")
    edge: EdgeSettings | None = Field(default=None, description="a node's own settings")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Only what it is made with: `load` merges the sources, for it must tell which of them a fault comes from."""
        return (init_settings,)


def load(file: Path | None, flags: Values) -> Configuration:
    """The settings from nested `flags`, the environment and a file: by default ./alignfed.toml, if there is one.

    Raises ConfigurationError for a file that cannot be read, bad TOML, unknown keys and values that are not allowed.
    """
    path = file or DEFAULT_FILE
    from_file = _read(path) if file or path.exists() else {}
    sources = {"command line": flags, "environment": _environment(), str(path): from_file}
    merged: Values = {}
    for values in sources.values():
        merged = _merge(values, merged)
    # of a broker that the command line names, the file does not know the port
    if "host" in (named := flags.get("broker", {})) and "port" not in named:
        merged = _merge(merged, {"broker": {"port": TLS_PORT if _uses_tls(merged) else PORT}})
    try:
        return Configuration(**merged)
    except ValidationError as error:
        # a default made from other settings cannot be made while one of them is wrong: no fault of its own
        faults = [fault for fault in error.errors(include_url=False) if fault["type"] != "default_factory_not_called"]
        raise ConfigurationError("\n".join(_explain(fault, sources) for fault in faults)) from None


def from_flags(
    federation: str | None, broker: str | None, option: str = "--broker", **sections: Mapping[str, Any]
) -> Values:
    """Flags as nested settings; None is a flag that was not given. `option` is the one that says where the broker is.

    Raises ConfigurationError for an address that is none.
    """
    flags: dict[str, Any] = {name: {k: v for k, v in s.items() if v is not None} for name, s in sections.items()}
    if broker is not None:
        flags["broker"] = _address(option, broker)
    if federation is not None:
        flags["federation"] = federation
    return {name: value for name, value in flags.items() if value}


def _address(option: str, text: str) -> Values:
    """Host and port; without a port it is the usual one, which depends on other settings (`load`)."""
    found = ADDRESS.fullmatch(text)
    if found is None or (found[3] is not None and not 0 < int(found[3]) <= 65535):
        raise ConfigurationError(
            f"command line: {option} {text}: give HOST or HOST:PORT, for instance gateway.local, 127.0.0.1:1883 or "
            "[::1]:1883"
        )
    host = {"host": found[1] or found[2]}
    return host if found[3] is None else {**host, "port": int(found[3])}


def _uses_tls(values: Values) -> bool:
    return any(_at(values, *path) for path in (("broker", "ca_file"), ("security", "keys")))


def _at(values: Any, *path: str) -> Any:
    """What nested settings hold there; None for nothing."""
    for key in path:
        values = values.get(key) if isinstance(values, Mapping) else None
    return values


def variable(*keys: str) -> str:
    """The environment variable of a setting: ALIGNFED_BROKER__PORT for broker, port."""
    return PREFIX + DELIMITER.join(keys).upper()


def _read(path: Path) -> Values:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(f"cannot read {path}: {error.strerror}; give another --config FILE") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path} is not valid TOML: {error}") from None
    except RecursionError:
        raise ConfigurationError(f"{path} is not valid TOML: lists within lists, too deep to be settings") from None


def _environment() -> Values:
    for name in os.environ:
        section, delimiter, _ = name.upper().removeprefix(PREFIX).partition(DELIMITER)
        if name.upper().startswith(PREFIX) and delimiter and section.lower() not in Configuration.model_fields:
            sections = ", ".join(Configuration.model_fields)
            raise ConfigurationError(f"environment: {name}: there is no section {section.lower()}, only {sections}")
    try:
        return EnvSettingsSource(Configuration)()
    except SettingsError as error:
        cause = f" ({error.__cause__})" if error.__cause__ else ""
        raise ConfigurationError(f"environment: {error}{cause}; lists and tables are written as JSON") from None


def _merge(below: Values, above: Values) -> dict[str, Any]:
    """Two nested mappings as one; what is in `above` wins."""
    merged = {**below, **above}
    for key in below.keys() & above.keys():
        if isinstance(below[key], Mapping) and isinstance(above[key], Mapping):
            merged[key] = _merge(below[key], above[key])
    return merged


# --- what is wrong, in words ---


def _explain(fault: ErrorDetails, sources: Mapping[str, Values]) -> str:
    keys = [str(part) for part in fault["loc"]]
    path, model = _resolve(keys)
    name = ".".join(path)
    if fault["type"] == "missing":
        return f"{name} is required: set it in the file or as {variable(*path)}"
    where = next((source for source, values in sources.items() if _holds(values, path)), "settings")
    shown = variable(*path) if where == "environment" else name
    if fault["type"] == "extra_forbidden":
        return f"{where}: {shown} is not a setting; {_allowed(path, model)}"
    given = f" = {fault['input']!r}" if not isinstance(fault["input"], BaseModel | Mapping) else ""
    return f"{where}: {shown}{given}: {_message(fault, path, model)}"


def _message(fault: ErrorDetails, path: list[str], model: type[BaseModel] | None) -> str:
    """What is allowed; a pattern is said in the words of its field."""
    field = model.model_fields.get(path[-1]) if model and path else None
    if fault["type"] == "string_pattern_mismatch" and field and field.description:
        return f"allowed are {field.description}"
    return re.sub("^(Value error, |Input |String )", "", fault["msg"])


def _resolve(keys: list[str]) -> tuple[list[str], type[BaseModel] | None]:
    """The path without the tags of unions in it, and the model that its last key belongs to."""
    path: list[str] = []
    models: list[type[BaseModel]] = [Configuration]
    owner: type[BaseModel] | None = Configuration
    for key in keys:
        if len(models) > 1:  # the key says which member of a union is meant
            models = [model for model in models if key in get_args(model.model_fields["name"].annotation)]
            continue
        path.append(key)
        owner = models[0] if models else None
        field = owner.model_fields.get(key) if owner else None
        models = list(_models_in(field.annotation)) if field else []
    return path, owner


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models_in(argument)


def _holds(values: Any, path: list[str]) -> bool:
    for key in path:
        if not isinstance(values, Mapping) or key not in values:
            return False
        values = values[key]
    return True


def _allowed(path: list[str], model: type[BaseModel] | None) -> str:
    names = list(model.model_fields) if model else []
    section = f"[{'.'.join(path[:-1])}]" if path[1:] else "the file"
    close = difflib.get_close_matches(path[-1], names, n=1)
    guess = f"did you mean {close[0]}? " if close else ""
    return f"{guess}{section} takes {', '.join(names)}"
