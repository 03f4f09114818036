"""A CronJob for Kubernetes, with the volume that keeps the workspace between runs."""

from __future__ import annotations

import re
from typing import Any

import yaml

from workbench.errors import ParameterError
from workbench.pipeline.schedules.job import Job

Json = dict[str, Any]

PROJECT = "/workbench"
"""Where the image holds the project."""

_HOME = "/data/.workbench"
_LONGEST_NAME = 52  # Kubernetes appends to a CronJob's name for its jobs
# Kubernetes knows no exit status but 0 as success. The shell is process 1, which hears SIGTERM only
# when told to, and hands it on so that the run ends its steps.
_SCRIPT = """\
workbench run "$@" & run=$!
trap 'kill -TERM "$run"; wait "$run"; exit 143' TERM INT
wait "$run"; status=$?
case $status in 3|4) exit 0 ;; *) exit "$status" ;; esac
"""


def emit(job: Job) -> dict[str, str]:
    """``NAME.cronjob.yaml``: a PersistentVolumeClaim and a CronJob."""
    name = _name(job.name)
    head = [
        f"# {job.made_by('k8s')}",
        f"# The image holds the project in {PROJECT} and `workbench` on its PATH.",
        f"# Addresses and tokens of servers: a Secret {name}-servers (it need not exist).",
    ]
    documents = (_volume(name), _cron_job(job, name))
    text = "---\n".join(yaml.safe_dump(one, sort_keys=False, width=100) for one in documents)
    return {f"{job.name}.cronjob.yaml": "\n".join(head) + "\n" + text}


def _volume(name: str) -> Json:
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": f"{name}-workspace"},
        "spec": {
            "accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": "100Gi"}},
        },
    }


def _cron_job(job: Job, name: str) -> Json:
    return {
        "apiVersion": "batch/v1",
        "kind": "CronJob",
        "metadata": {"name": name, "labels": {"app.kubernetes.io/name": "workbench"}},
        "spec": {
            "schedule": job.time.text,
            "timeZone": job.timezone,
            "concurrencyPolicy": "Forbid",
            "startingDeadlineSeconds": 3600,  # a missed run is made up for within the hour
            "successfulJobsHistoryLimit": 3,
            "failedJobsHistoryLimit": 3,
            "jobTemplate": {
                "spec": {
                    "backoffLimit": 1,  # a lost node: the second pod goes on where it stopped
                    "template": {"spec": _pod(job, name)},
                }
            },
        },
    }


def _pod(job: Job, name: str) -> Json:
    container: Json = {
        "name": "run",
        "image": job.image,
        "workingDir": PROJECT,
        "command": ["/bin/sh", "-c", _SCRIPT, "run"],
        "args": [_literal(word) for word in (_file(job), *job.parameters)],
        "env": [
            {"name": "WORKBENCH_HOME", "value": _HOME},
            *(_secret(name, secret) for secret in job.secrets),
        ],
        "envFrom": [{"secretRef": {"name": f"{name}-servers", "optional": True}}],
        "resources": _resources(job),
        "volumeMounts": [{"name": "workspace", "mountPath": "/data"}],
    }
    return {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "terminationGracePeriodSeconds": 60,
        "containers": [container],
        "volumes": [
            {"name": "workspace", "persistentVolumeClaim": {"claimName": f"{name}-workspace"}}
        ],
    }


def _resources(job: Job) -> Json:
    requests: Json = {"cpu": str(job.threads), "memory": f"{round(job.memory_gib * 1024)}Mi"}
    if not job.gpus:
        return {"requests": requests}
    # Whole cards only, and as a limit: so the device plugin wants it.
    return {"requests": requests, "limits": {"nvidia.com/gpu": str(max(1, round(job.gpus)))}}


def _secret(name: str, secret: str) -> Json:
    reference = {"name": f"{name}-secrets", "key": secret}
    return {"name": secret, "valueFrom": {"secretKeyRef": reference}}


def _file(job: Job) -> str:
    """The pipeline file from the project's root, the folder above the file's."""
    return f"{job.file.parent.name}/{job.file.name}"


def _literal(word: str) -> str:
    return word.replace("$(", "$$(")  # Kubernetes would put a variable there


def _name(text: str) -> str:
    name = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
    if not name or len(name) > _LONGEST_NAME:
        raise ParameterError(
            f"{text!r} cannot be made a name in Kubernetes",
            hint=f"Letters and digits, at most {_LONGEST_NAME}: rename the pipeline",
        )
    return name
