"""Notebooks as pipeline steps: contracts, plans, runs, checks, lineage and reproduction.

Modules, each importing only from those above it:

    ipynb, parameters, contract      what a step notebook declares, read without running it
    pipeline_file, graph             a pipeline file, and the checked graph of its steps
    environment, cache, plan         step keys, and what has to run and why
    step, connect, interactive       what a notebook sees: ``step = workbench.step()``
    spec, unit, runner               one execution of a step; `runner` alone imports papermill
    forked_kernel, step_kernel       the kernels that steps run in
    executors                        where steps run: local processes or Ray
    runs, step_output                the files of runs and steps: state, progress, metrics, logs
    recorder, openlineage, lineage   MLflow, OpenLineage events, and what came from what
    external, execution, run         servers, one step of a run, the whole run
    checking, promote, reproduction  a notebook's way to production, and a model's way back
    schedules                        files for cron, systemd, Dagster, Airflow and Kubernetes
"""
