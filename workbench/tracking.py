"""Runs and models in MLflow: the only place that imports it.

MLflow is an index that people browse. What it says can be rebuilt from the records, and nothing
is trusted because it stands there.
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

from workbench.core.errors import ServiceError

_NOT_IN_NAMES = re.compile(r"[^\w\-. :/]", re.ASCII)
_MAX_PARAMETER_LENGTH = 6000
_MAX_TAG_LENGTH = 8000
_TAGS_PER_CALL, _METRICS_PER_CALL = 100, 500
_DIGEST_CHARACTERS = 36  # MLflow keeps no more of a dataset's digest


@dataclass(frozen=True)
class MetricPoint:
    """One value of a metric, ``at`` in seconds since the epoch."""

    name: str
    value: float
    step: int
    at: float


class Tracker:
    """Writes runs of one experiment. Making one imports MLflow, which takes seconds."""

    def __init__(self, uri: str, experiment: str) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
        os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
        from mlflow import MlflowClient

        logging.getLogger("mlflow").setLevel(logging.WARNING)
        self.uri = uri
        self._client = MlflowClient(tracking_uri=uri, registry_uri=uri)
        with self._translated():
            found = self._client.get_experiment_by_name(experiment)
            self.experiment = (
                found.experiment_id if found else self._client.create_experiment(experiment)
            )

    def start(
        self,
        name: str,
        *,
        tags: Mapping[str, str],
        parameters: Mapping[str, Any],
        parent: str | None = None,
    ) -> str:
        """Begin a run, below ``parent`` when given, and return its id."""
        from mlflow.entities import Param

        tags = {**tags, **({"mlflow.parentRunId": parent} if parent else {})}
        with self._translated():
            run = self._client.create_run(self.experiment, run_name=name, tags=tags)
            given = [Param(key, _parameter_text(value)) for key, value in parameters.items()]
            if given:
                self._client.log_batch(run.info.run_id, params=given)
        return str(run.info.run_id)

    def log_points(self, run_id: str, points: Sequence[MetricPoint]) -> None:
        self._log(run_id, points=points)

    def log_files(self, run_id: str, files: Sequence[Path], folder: str | None = None) -> None:
        with self._translated():
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
        """Show records as the run's datasets, ``context`` telling inputs from outputs.

        `record_tags` tells the same as tags, by which runs can be searched.

        Args:
            records: References by name.
            made_by: References to the ids of the runs that made them, where those are known.
        """
        from mlflow.entities import Dataset, DatasetInput, InputTag

        datasets = []
        for name, ref in records.items():
            kind, digest = ref.split("/")
            upstream = (made_by or {}).get(ref)
            source = {"ref": ref, **({"run_id": upstream} if upstream else {})}
            entity = Dataset(
                f"{name} ({kind})", digest[:_DIGEST_CHARACTERS], "workbench", json.dumps(source)
            )
            datasets.append(DatasetInput(entity, [InputTag("mlflow.data.context", context)]))
        if datasets:
            with self._translated():
                self._client.log_inputs(run_id, datasets)

    def set_tags(self, run_id: str, tags: Mapping[str, str]) -> None:
        self._log(run_id, tags=tags)

    def _log(
        self,
        run_id: str,
        *,
        points: Sequence[MetricPoint] = (),
        tags: Mapping[str, str] | None = None,
    ) -> None:
        """Figures and tags in as few calls as MLflow's limits let: a call costs the server most."""
        metrics, given = _mlflow_metrics(points), _mlflow_tags(tags or {})
        calls = max(-(-len(metrics) // _METRICS_PER_CALL), -(-len(given) // _TAGS_PER_CALL))
        with self._translated():
            for call in range(calls):
                some = slice(call * _METRICS_PER_CALL, (call + 1) * _METRICS_PER_CALL)
                named = slice(call * _TAGS_PER_CALL, (call + 1) * _TAGS_PER_CALL)
                self._client.log_batch(run_id, metrics=metrics[some], tags=given[named])

    def log_text(self, run_id: str, text: str, file: str) -> None:
        """Keep a text as the artifact ``file``, a path inside the run's artifacts."""
        with self._translated():
            self._client.log_text(run_id, text, file)

    def end(
        self,
        run_id: str,
        status: str,
        tags: Mapping[str, str] | None = None,
        points: Sequence[MetricPoint] = (),
    ) -> None:
        """End a run as ``FINISHED``, ``FAILED`` or ``KILLED``, with its last tags and figures."""
        self._log(run_id, points=points, tags=tags)
        with self._translated():
            self._client.set_terminated(run_id, status)

    def end_abandoned(self, tags: Mapping[str, str], alive: Container[str] = ()) -> int:
        """End runs with these tags that a killed runner left running; returns how many.

        Args:
            alive: Values of ``workbench.run`` whose runner is still at work.
        """
        clauses = [f"tags.`{key}` = '{value}'" for key, value in tags.items()]
        query = " and ".join(["attributes.status = 'RUNNING'", *clauses])
        with self._translated():
            found = self._client.search_runs([self.experiment], filter_string=query)
            runs = [run for run in found if run.data.tags.get("workbench.run") not in alive]
            for run in runs:
                self._client.set_terminated(run.info.run_id, "KILLED")
        return len(runs)

    def run_url(self, run_id: str) -> str:
        """A run's page, without the password that an external address may carry."""
        scheme, mark, rest = self.uri.partition("://")
        address = f"{scheme}{mark}{rest.rpartition('@')[2]}"
        return f"{address}/#/experiments/{self.experiment}/runs/{run_id}"

    def register(
        self,
        model: str,
        run_id: str,
        *,
        source: str,
        tags: Mapping[str, str],
        aliases: Sequence[str],
        known_by: str = "workbench.release",
    ) -> int:
        """Register a version under ``aliases``; the same one twice is the same version.

        Args:
            source: Artifact folder of the run that holds the bundle.
            tags: Must hold ``known_by``, the tag by which a version is found again.
        """
        from mlflow.exceptions import MlflowException

        version = self.version_of(model, known_by, tags[known_by])
        with self._translated():
            if version is None:
                with contextlib.suppress(MlflowException):  # it is there already
                    self._client.create_registered_model(model)
                artifact = f"runs:/{run_id}/{source}"
                made = self._client.create_model_version(
                    model, source=artifact, run_id=run_id, tags=dict(tags)
                )
                version = int(made.version)
            for alias in aliases:
                self._client.set_registered_model_alias(model, alias, str(version))
        return version

    def version_of(self, model: str, tag: str, value: str) -> int | None:
        """The registered version that carries a tag, if there is one."""
        with self._translated():
            known = self._client.search_model_versions(
                f"name = '{model}' and tags.`{tag}` = '{value}'"
            )
        return int(known[0].version) if known else None

    def point(self, model: str, aliases: Mapping[str, int]) -> None:
        """Let each alias of a registered model point to a version."""
        with self._translated():
            for alias, version in aliases.items():
                self._client.set_registered_model_alias(model, alias, str(version))

    def release_of(self, model: str, *, alias: str) -> str:
        """The release record behind a model's alias."""
        with self._translated():
            found = self._client.get_model_version_by_alias(model, alias)
        return str(found.tags["workbench.release"])

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        from mlflow.exceptions import MlflowException

        try:
            yield
        except MlflowException as error:
            raise ServiceError(
                f"MLflow answered with an error: {error}",
                where=self.uri,
                hint="`workbench status` shows whether it runs; `workbench up` starts it again",
            ) from error


def record_tags(
    records: Mapping[str, str], *, context: str, made_by: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Tags that name a run's records, and the runs that made them where those are known."""
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
    """A name in the characters that MLflow takes: ``a=b`` becomes ``a:b``, ``a[0]`` ``a.0``."""
    return _NOT_IN_NAMES.sub("_", name.replace("=", ":").replace("[", ".").replace("]", ""))


def _parameter_text(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text[:_MAX_PARAMETER_LENGTH]
