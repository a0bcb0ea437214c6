"""The laboratory: what the store costs, beside other queues on PostgreSQL and beside the bare driver.

`python -m benchmarks` from the top of the repository; `--help` lists the works and the options.
"""
