"""What vehicles report, on its way from the vehicle to a table, and what follows from it.

`store` is the table: Parquet files, read with DuckDB. `drift` tests whether drives have changed and
`causes` why; `watch` is one look at the table. `alarms` turns a finding into mining, labels and a
retraining inside a signed `envelope`. `performance` estimates how good a model is without labels.
"""
