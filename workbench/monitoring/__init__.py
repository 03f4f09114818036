"""What vehicles report, on its way from the vehicle to a table, and what is found in it.

`store` is the table: Parquet files, read with DuckDB.
"""
