"""The queues that are measured, one process each. `benchmarks.lanes` starts them; `consumer` is what they understand.

Modules here that are named after another project run in an environment of their own (`benchmarks.install`), where this
project is not installed: besides `consumer` they import nothing of it.
"""
