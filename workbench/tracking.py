"""Runs and models in MLflow: the only module that imports it.

MLflow is an index for people to browse. It can be rebuilt from the records, and nothing is trusted
because it is in MLflow.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workbench.core import secret_scan
from workbench.core.errors import ServiceError
from workbench.core.text import short_repr

__all__ = ["MetricPoint", "RegistryModel", "Tracker", "record_tags"]

_NOT_IN_NAMES = re.compile(r"[^\w\-. :/]", re.ASCII)
_MAX_PARAMETER_LENGTH = 6000
_MAX_TAG_LENGTH = 8000
_NOTE_TAG = "mlflow.note.content"
_TAGS_PER_CALL, _METRICS_PER_CALL, _VERSIONS_PER_PAGE = 100, 500, 1000
_MAX_DIGEST_LENGTH = 36  # of a dataset in MLflow
_KIND_TAG, _KIND = "mlflow.experimentKind", "custom_model_development"
TRAINING_VIEW = "workflowType=machine_learning"
"""What MLflow 3's pages go by: the tag of an experiment, and first of all the view that an address
names; without one it is that of LLM traces."""


@dataclass(frozen=True)
class MetricPoint:
    """One value of a metric; ``at`` is in seconds since the Unix epoch."""

    name: str
    value: float
    step: int
    at: float


@short_repr
@dataclass(frozen=True)
class RegistryModel:
    """A registered model: tags by version number, and version numbers by alias."""

    versions: Mapping[int, Mapping[str, str]]
    aliases: Mapping[str, int]


class Tracker:
    """Writes runs of one experiment to MLflow.

    The constructor imports MLflow, which takes seconds. All methods raise `ServiceError` if MLflow
    cannot be reached or answers with an error.

    Args:
        uri: Address of the tracking server.
        experiment: Name of the experiment, created if it does not exist.
    """

    def __init__(self, uri: str, experiment: str) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
        os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
        from mlflow import MlflowClient

        logging.getLogger("mlflow").setLevel(logging.WARNING)
        self.uri = uri
        self._client = MlflowClient(tracking_uri=uri, registry_uri=uri)
        with self._errors_translated():
            existing = self._client.get_experiment_by_name(experiment)
            self.experiment = (
                existing.experiment_id if existing else self._client.create_experiment(experiment)
            )
            if existing is None or _KIND_TAG not in existing.tags:
                self._client.set_experiment_tag(self.experiment, _KIND_TAG, _KIND)

    def start(
        self,
        name: str,
        *,
        tags: Mapping[str, str],
        parameters: Mapping[str, Any],
        parent: str | None = None,
    ) -> str:
        """Start a run.

        Args:
            parent: Id of the parent run.

        Returns:
            The id of the run.
        """
        from mlflow.entities import Param

        tags = {**tags, **({"mlflow.parentRunId": parent} if parent else {})}
        with self._errors_translated():
            run = self._client.create_run(self.experiment, run_name=name, tags=tags)
            params = [Param(key, _parameter_text(value)) for key, value in parameters.items()]
            if params:
                self._client.log_batch(run.info.run_id, params=params)
        return str(run.info.run_id)

    def log_points(self, run_id: str, points: Sequence[MetricPoint]) -> None:
        """Log values of metrics."""
        self._log(run_id, points=points)

    def log_files(self, run_id: str, files: Sequence[Path], folder: str | None = None) -> None:
        """Log files and folders as artifacts, below the artifact folder ``folder``."""
        with self._errors_translated():
            for path in files:
                if path.is_dir():
                    self._client.log_artifacts(run_id, str(path), folder)
                else:
                    self._client.log_artifact(run_id, str(path), folder)

    def log_records(
        self,
        run_id: str,
        records: Mapping[str, str],
        *,
        context: str,
        made_by: Mapping[str, str] | None = None,
    ) -> None:
        """Log records as datasets of the run; `record_tags` has the same as tags to search by.

        Args:
            records: References by name.
            context: ``input`` or ``output``.
            made_by: Id of the run that produced a record, by reference, if it is known.
        """
        from mlflow.entities import Dataset, DatasetInput, InputTag

        datasets = []
        for name, ref in records.items():
            kind, digest = ref.split("/")
            upstream = (made_by or {}).get(ref)
            source = {"ref": ref, **({"run_id": upstream} if upstream else {})}
            entity = Dataset(
                f"{name} ({kind})", digest[:_MAX_DIGEST_LENGTH], "workbench", json.dumps(source)
            )
            datasets.append(DatasetInput(entity, [InputTag("mlflow.data.context", context)]))
        if datasets:
            with self._errors_translated():
                self._client.log_inputs(run_id, datasets)

    def set_tags(self, run_id: str, tags: Mapping[str, str]) -> None:
        """Set tags of a run."""
        self._log(run_id, tags=tags)

    def _log(
        self,
        run_id: str,
        *,
        points: Sequence[MetricPoint] = (),
        tags: Mapping[str, str] | None = None,
    ) -> None:
        """Log metrics and tags in as few calls as MLflow's limits allow: calls are slow."""
        metrics, entries = _mlflow_metrics(points), _mlflow_tags(tags or {})
        calls = max(-(-len(metrics) // _METRICS_PER_CALL), -(-len(entries) // _TAGS_PER_CALL))
        with self._errors_translated():
            for call in range(calls):
                some = slice(call * _METRICS_PER_CALL, (call + 1) * _METRICS_PER_CALL)
                named = slice(call * _TAGS_PER_CALL, (call + 1) * _TAGS_PER_CALL)
                self._client.log_batch(run_id, metrics=metrics[some], tags=entries[named])

    def log_text(self, run_id: str, text: str, file: str) -> None:
        """Log a text as the artifact ``file``, a relative path."""
        with self._errors_translated():
            self._client.log_text(run_id, text, file)

    def end(
        self,
        run_id: str,
        status: str,
        tags: Mapping[str, str] | None = None,
        points: Sequence[MetricPoint] = (),
        *,
        name: str | None = None,
        description: str | None = None,
    ) -> None:
        """End a run.

        Args:
            status: ``FINISHED``, ``FAILED`` or ``KILLED``.
            tags: Last tags of the run.
            points: Last values of metrics.
            name: A new name.
            description: Markdown for the run's page.
        """
        note = {_NOTE_TAG: description} if description else {}
        self._log(run_id, points=points, tags={**(tags or {}), **note})
        with self._errors_translated():
            if name is not None:
                self._client.update_run(run_id, name=name)
            self._client.set_terminated(run_id, status)

    def end_abandoned(self, tags: Mapping[str, str], alive: Container[str] = ()) -> int:
        """End runs that a killed runner left in the state RUNNING.

        Args:
            tags: Tags of the runs.
            alive: Values of the tag ``workbench.run`` whose runner is still working.

        Returns:
            The number of runs that were ended.
        """
        clauses = [f"tags.`{key}` = '{value}'" for key, value in tags.items()]
        query = " and ".join(["attributes.status = 'RUNNING'", *clauses])
        with self._errors_translated():
            running = self._client.search_runs([self.experiment], filter_string=query)
            runs = [run for run in running if run.data.tags.get("workbench.run") not in alive]
            for run in runs:
                self._client.set_terminated(run.info.run_id, "KILLED")
        return len(runs)

    def run_url(self, run_id: str) -> str:
        """Address of the page of a run, without a password."""
        scheme, mark, rest = self.uri.partition("://")
        return f"{scheme}{mark}{rest.rpartition('@')[2]}/{self.run_link(run_id)}"

    def run_link(self, run_id: str) -> str:
        """Link to the page of a run from another page of the same server."""
        return f"#/experiments/{self.experiment}/runs/{run_id}?{TRAINING_VIEW}"

    def register(
        self,
        model: str,
        run_id: str,
        *,
        source: str,
        tags: Mapping[str, str],
        aliases: Sequence[str],
        known_by: str = "workbench.release",
        number: int | None = None,
    ) -> int:
        """Register a model version, unless it is registered, and point aliases to it.

        Args:
            model: Name of the registered model.
            source: Artifact folder of the run with the bundle.
            tags: Tags of the version.
            known_by: The tag that identifies the version.
            number: The version number that a new version should get, if it is still free; the
                numbers before it that nothing has stay unused.

        Returns:
            The version number.
        """
        from mlflow.exceptions import MlflowException

        version = self.version_of(model, known_by, tags[known_by])
        with self._errors_translated():
            if version is None:
                with contextlib.suppress(MlflowException):  # it exists
                    self._client.create_registered_model(model)
                artifact = f"runs:/{run_id}/{source}"
                while version is None or (number is not None and version < number):
                    if version is not None:  # MLflow counts up; it never gives this number again
                        self._client.delete_model_version(model, str(version))
                    created = self._client.create_model_version(
                        model, source=artifact, run_id=run_id, tags=dict(tags)
                    )
                    version = int(created.version)
            for alias in aliases:
                self._client.set_registered_model_alias(model, alias, str(version))
        return version

    def version_of(self, model: str, tag: str, value: str) -> int | None:
        """The registered version with a tag; None if there is none."""
        with self._errors_translated():
            versions = self._client.search_model_versions(
                f"name = '{model}' and tags.`{tag}` = '{value}'"
            )
        return int(versions[0].version) if versions else None

    def point(self, model: str, aliases: Mapping[str, int]) -> None:
        """Point aliases of a registered model to versions."""
        with self._errors_translated():
            for alias, version in aliases.items():
                self._client.set_registered_model_alias(model, alias, str(version))

    def set_version_tags(self, model: str, version: int, tags: Mapping[str, str]) -> None:
        """Set tags of a version of a registered model."""
        with self._errors_translated():
            for name, value in tags.items():
                self._client.set_model_version_tag(model, str(version), name, value)

    def describe(self, model: str, version: int, text: str) -> None:
        """Set the description, in Markdown, of a version of a registered model."""
        with self._errors_translated():
            self._client.update_model_version(model, str(version), description=text)

    def drop_aliases(self, model: str, aliases: Sequence[str]) -> None:
        """Remove aliases of a registered model."""
        with self._errors_translated():
            for alias in aliases:
                self._client.delete_registered_model_alias(model, alias)

    def registry_model(self, model: str) -> RegistryModel:
        """What MLflow has registered under a name; nothing for a name that it does not know."""
        with self._errors_translated():
            found = self._client.search_registered_models(f"name = '{model}'")
            versions: dict[int, Mapping[str, str]] = {}
            token = None
            while True:
                page = self._client.search_model_versions(
                    f"name = '{model}'", max_results=_VERSIONS_PER_PAGE, page_token=token
                )
                versions |= {int(one.version): dict(one.tags) for one in page}
                token = page.token
                if not token:
                    break
        aliases = {alias: int(number) for one in found for alias, number in one.aliases.items()}
        return RegistryModel(versions, aliases)

    def registered_models(self) -> list[str]:
        """Names of all registered models."""
        names, token = list[str](), None
        with self._errors_translated():
            while True:
                page = self._client.search_registered_models(page_token=token)
                names += [one.name for one in page]
                token = page.token
                if not token:
                    return names

    def delete_model(self, model: str) -> None:
        """Remove a registered model with all its versions; its runs stay."""
        if self.registry_model(model).versions:
            with self._errors_translated():
                self._client.delete_registered_model(model)

    @contextlib.contextmanager
    def _errors_translated(self) -> Iterator[None]:
        from mlflow.exceptions import MlflowException

        try:
            yield
        except MlflowException as error:
            hint = "`workbench status` shows whether it is running; `workbench up` starts it"
            if "401" in str(error):
                hint = "Set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD to its login"
            raise ServiceError(
                secret_scan.mask(f"MLflow answered with an error: {error}"),
                where=secret_scan.mask(self.uri),
                hint=hint,
            ) from error


def record_tags(
    records: Mapping[str, str], *, context: str, made_by: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Tags with the records of a run, by which runs can be searched.

    Args:
        records: References by name.
        context: ``input`` or ``output``.
        made_by: Id of the run that produced a record, by reference, if it is known.
    """
    tags = {}
    for name, ref in records.items():
        tags[f"workbench.{context}.{_mlflow_name(name)}"] = ref
        if made_by and ref in made_by:
            tags[f"workbench.{context}.{_mlflow_name(name)}.run"] = made_by[ref]
    return tags


def _mlflow_metrics(points: Sequence[MetricPoint]) -> list[Any]:
    from mlflow.entities import Metric

    return [Metric(_mlflow_name(p.name), p.value, int(p.at * 1000), p.step) for p in points]


def _mlflow_tags(tags: Mapping[str, str]) -> list[Any]:
    from mlflow.entities import RunTag

    return [RunTag(key, value[:_MAX_TAG_LENGTH]) for key, value in tags.items()]


def _mlflow_name(name: str) -> str:
    """Replace characters that MLflow does not allow: ``a=b`` becomes ``a:b``, ``a[0]`` ``a.0``."""
    return _NOT_IN_NAMES.sub("_", name.replace("=", ":").replace("[", ".").replace("]", ""))


def _parameter_text(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text[:_MAX_PARAMETER_LENGTH]
