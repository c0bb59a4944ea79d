"""The life cycle of models: find versions, load them beside the old ones, switch traffic, unload; and their states."""

from __future__ import annotations

import threading
import time
import weakref
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from tfserving_protos import messages

from . import versions
from .status import Code, StatusError, invalid

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from .model import Servable
    from .runtime import LoadedModel

    # From name, version number and folder to a model that is ready to serve.
    Loader = Callable[[str, int, Path], Servable]

log = structlog.get_logger()


class State(IntEnum):
    """ModelVersionStatus.State of the protocol."""

    START = 10
    LOADING = 20
    AVAILABLE = 30
    UNLOADING = 40
    END = 50


@dataclass(slots=True)
class VersionStatus:
    """One of the versions seen since the server started."""

    state: State
    error: StatusError | None = None
    files: Mapping[str, tuple[int, int]] = field(default_factory=dict)  # as they were when loading failed

    @property
    def is_serving(self) -> bool:
        return self.state is State.AVAILABLE


class ModelManager:
    """All models of one server.

    Requests read one immutable mapping and take no lock; everything that changes it holds `_changes`.
    """

    def __init__(self, load: Loader, *, labels_need_loaded_versions: bool = True) -> None:
        self._load = load
        self._labels_need_loaded_versions = labels_need_loaded_versions
        self._changes = threading.RLock()
        self._configs: dict[str, messages.ModelConfig] = {}
        self._labels: Mapping[str, Mapping[str, int]] = {}
        self._statuses: dict[str, dict[int, VersionStatus]] = {}
        # Configured, and unloaded by a client until one loads them again.
        self._withdrawn: frozenset[str] = frozenset()
        # By name, the versions that serve, newest first. Replaced as a whole at every change.
        self._serving: Mapping[str, Mapping[int, Servable]] = {}

    # ---- for requests ----

    def find(self, spec: messages.ModelSpec) -> Servable:
        """The version that `spec` asks for: by number, by label, or the newest.

        Raises:
            StatusError: NOT_FOUND for an unknown model or version, INVALID_ARGUMENT for an unknown label or no name.
        """
        if not spec.name:
            raise invalid("ModelSpec has no name specified.")
        version = self.version_of(spec)
        loaded = self._serving.get(spec.name)
        if version is None:
            if loaded:
                return next(iter(loaded.values()))
            raise StatusError(Code.NOT_FOUND, f"Servable not found for request: Latest({spec.name})")
        if loaded is None or version not in loaded:
            raise StatusError(Code.NOT_FOUND, f"Servable not found for request: Specific({spec.name}, {version})")
        return loaded[version]

    def known(self, name: str) -> str:
        """`name` if it is, or was, the name of a configured model; otherwise the empty string."""
        return name if name in self._statuses or name in self._configs else ""

    def missing(self) -> list[str]:
        """The configured models of which no version serves, though none was unloaded on purpose."""
        return [name for name in self._configs if not self._serving.get(name) and name not in self._withdrawn]

    def version_of(self, spec: messages.ModelSpec) -> int | None:
        """The version number that `spec` names, directly or by a label; None if it names neither."""
        choice = spec.WhichOneof("version_choice")
        if choice == "version":
            return spec.version.value
        if choice == "version_label":
            version = self._labels.get(spec.name, {}).get(spec.version_label)
            if version is None:
                raise invalid(f"Unrecognized servable version label: {spec.version_label}")
            return version
        return None

    def statuses(self, name: str) -> list[tuple[int, VersionStatus]]:
        """Every known version of a model, newest first; empty for an unknown model."""
        return sorted(self._statuses.get(name, {}).items(), reverse=True)

    def index(self) -> list[tuple[str, int, VersionStatus]]:
        """Every known version of every configured model, by name."""
        return [(name, version, status) for name in sorted(self._configs) for version, status in self.statuses(name)]

    # ---- for configuration and polling ----

    def start(self, config: messages.ModelServerConfig, poll_s: float, stop: threading.Event) -> None:
        """Load the first configuration; returns once every model has a version that serves, or `stop` is set.

        Polls while a model has no version yet.

        Raises:
            StatusError: the configuration is invalid, or a model cannot be loaded.
        """
        with self._changes:
            self._configure(config)
            while not stop.is_set():
                self.poll()
                self._raise_failures(self._configs)
                if not self.missing():
                    break
                log.warning("no_versions_found", models=self.missing())
                stop.wait(max(poll_s, 1))
            self._labels = self._checked_labels(config.model_config_list.config)

    def reload(self, config: messages.ModelServerConfig) -> None:
        """Serve exactly what `config` says. Models that are not in it are unloaded.

        Raises:
            StatusError: the configuration is refused, and nothing has changed; or a new model could not be loaded or
                has no version yet, while all others have changed.
        """
        with self._changes:
            models = validated(config)
            self._labels = self._checked_labels(models)
            new = {model.name for model in models} - set(self._configs)
            self._configure(config)
            self.poll()
            self._raise_failures(new)
            for name in sorted(new - set(self._serving)):
                raise StatusError(
                    Code.UNKNOWN,
                    f"1 servable(s) did not become available: {{{{name: {name}}} due to error: NOT_FOUND: "
                    f"No versions of servable {name} found under base path {self._configs[name].base_path}}}",
                )
            log.info("config_reloaded", models=sorted(self._configs))

    def load(self, name: str) -> None:
        """Load a configured model that was unloaded, or new versions of one that serves; failed ones are retried.

        Raises:
            StatusError: NOT_FOUND for a model that is not configured or has no version, FAILED_PRECONDITION if none
                can be loaded, UNAVAILABLE while requests in flight still hold it.
        """
        with self._changes:
            self._require(name)
            known = self._statuses.get(name, {})
            self._statuses[name] = {version: status for version, status in known.items() if not status.error}
            self._poll_model(name)
            self._raise_failures([name], Code.FAILED_PRECONDITION)
            if self._serving.get(name):
                self._withdrawn -= {name}
                return
            if any(status.state is State.UNLOADING for _, status in self.statuses(name)):
                raise StatusError(Code.UNAVAILABLE, f"Requests in flight still hold {name}: try again after them")
            base_path = self._configs[name].base_path
            raise StatusError(Code.NOT_FOUND, f"No versions of servable {name} found under base path {base_path}")

    def unload(self, name: str) -> None:
        """Take all versions of a configured model out of traffic, until `load` or a new configuration.

        Raises:
            StatusError: NOT_FOUND for a model that is not configured.
        """
        with self._changes:
            self._require(name)
            self._withdrawn |= {name}
            self._unload(name, set(self._serving.get(name, {})))

    def _require(self, name: str) -> None:
        if name not in self._configs:
            raise StatusError(Code.NOT_FOUND, f"Model {name} is not in the server's configuration")

    def poll(self) -> None:
        """Check the base paths once: load new versions, unload those that the policy no longer wants."""
        with self._changes:
            for name in self._configs:
                if name not in self._withdrawn:
                    self._poll_model(name)
            for name in set(self._serving) - set(self._configs):
                self._unload(name, set(self._serving[name]))

    def _poll_model(self, name: str) -> None:
        config = self._configs[name]
        try:
            available = versions.on_disk(Path(config.base_path))
        except OSError as error:
            log.warning("base_path_not_readable", model=name, error=str(error))
            return
        aspired = versions.wanted(available, config.model_version_policy)
        for version in sorted(aspired, reverse=True):
            self._ensure_loaded(name, version, available[version])
        serving = set(self._serving.get(name, {}))
        # An old version stays until a new one serves.
        if serving & aspired or not aspired:
            self._unload(name, serving - aspired)

    def close(self) -> None:
        """Unload all models."""
        with self._changes:
            self._configs = {}
            self.poll()

    def _configure(self, config: messages.ModelServerConfig) -> None:
        self._configs = {model.name: model for model in validated(config)}
        self._withdrawn = frozenset()

    def _checked_labels(self, models: Iterable[messages.ModelConfig]) -> dict[str, dict[str, int]]:
        """The labels of a configuration; a label may only point at a version that is serving."""
        labels: dict[str, dict[str, int]] = {}
        for model in models:
            labels[model.name] = dict(model.version_labels)
            for label, version in model.version_labels.items():
                current = self._labels.get(model.name, {}).get(label)
                may_wait = not self._labels_need_loaded_versions and current in (None, version)
                if not may_wait and version not in self._serving.get(model.name, {}):
                    raise StatusError(
                        Code.FAILED_PRECONDITION,
                        f"Request to assign label to version {version} of model {model.name}, "
                        "which is not currently available for inference",
                    )
        return labels

    def _raise_failures(self, names: Iterable[str], code: Code = Code.UNKNOWN) -> None:
        """Raises `code`, with every error, if one of these models has no version that serves because of errors."""
        failures = [
            f"{{{{name: {name} version: {version}}} due to error: {status.error.describe()}}}"
            for name in names
            if not self._serving.get(name)
            for version, status in self.statuses(name)
            if status.error
        ]
        if failures:
            raise StatusError(code, f"{len(failures)} servable(s) did not become available: {{{', '.join(failures)}}}")

    def _ensure_loaded(self, name: str, version: int, folder: Path) -> None:
        known = self._statuses.setdefault(name, {})
        status = known.get(version)
        if status is not None:
            if status.state is not State.END:
                return
            if status.error and status.files == versions.fingerprint(folder):
                return
        files = versions.fingerprint(folder)
        known[version] = VersionStatus(State.LOADING)
        log.info("version_loading", model=name, version=version, path=str(folder))
        started = time.monotonic()
        try:
            servable = self._load(name, version, folder)
        except StatusError as error:
            known[version] = VersionStatus(State.END, error, files)
            log.error("version_failed", model=name, version=version, error=error.describe())
            return
        status = VersionStatus(State.AVAILABLE)
        # What is left at exit goes with the process.
        weakref.finalize(servable, _close, status, name, version, servable.model).atexit = False
        known[version] = status
        loaded = {**self._serving.get(name, {}), version: servable}
        self._serving = {**self._serving, name: dict(sorted(loaded.items(), reverse=True))}
        log.info("version_available", model=name, version=version, duration_s=round(time.monotonic() - started, 3))

    def _unload(self, name: str, obsolete: set[int]) -> None:
        """Take versions out of traffic. Each is closed after the last request that uses it."""
        if not obsolete:
            return
        for version in obsolete:
            self._statuses[name][version].state = State.UNLOADING
            log.info("version_unloading", model=name, version=version)
        remaining = {version: loaded for version, loaded in self._serving[name].items() if version not in obsolete}
        self._serving = {key: value for key, value in {**self._serving, name: remaining}.items() if value}


def _close(status: VersionStatus, name: str, version: int, model: LoadedModel) -> None:
    model.close()
    status.state = State.END
    log.info("version_unloaded", model=name, version=version)


def validated(config: messages.ModelServerConfig) -> list[messages.ModelConfig]:
    """The models of a configuration.

    Raises:
        StatusError: INVALID_ARGUMENT, saying what is wrong with which model.
    """
    models = list(config.model_config_list.config)
    names = set()
    for model in models:
        if model.name in names:
            raise invalid(f"Illegal to list model {model.name} multiple times in config list")
        names.add(model.name)
        if not Path(model.base_path).is_absolute():
            raise invalid(
                f"Expected model {model.name} to have an absolute path or URI; got base_path()={model.base_path}"
            )
        if model.model_type and model.model_platform:
            raise invalid("Illegal setting both model_type(deprecated) and model_platform.")
        if not model.model_type and not model.model_platform:
            raise invalid("Illegal setting neither model_type(deprecated) nor model_platform.")
        if model.model_type not in (messages.MODEL_TYPE_UNSPECIFIED, messages.TENSORFLOW):
            raise invalid(f"Model {model.name} requests unsupported model_type OTHER")
        if model.model_platform not in ("", "tensorflow"):
            raise invalid(f"Model {model.name} requests unsupported platform {model.model_platform}")
    return models


class Poller(threading.Thread):
    """Calls functions periodically until `stop` is set; a period of 0 s or less means never."""

    def __init__(self, stop: threading.Event, jobs: Iterable[tuple[float, Callable[[], None]]]) -> None:
        super().__init__(name="poller", daemon=True)
        self._stop_event = stop
        self._jobs = [(period, job) for period, job in jobs if period > 0]

    def run(self) -> None:
        """The thread."""
        due = {job: time.monotonic() + period for period, job in self._jobs}
        while due and not self._stop_event.wait(max(0.0, min(due.values()) - time.monotonic())):
            for period, job in self._jobs:
                if due[job] > time.monotonic():
                    continue
                try:
                    job()
                except Exception:
                    # Polling must go on: log the cause and retry in the next period.
                    log.exception("poll_failed")
                due[job] = time.monotonic() + period
