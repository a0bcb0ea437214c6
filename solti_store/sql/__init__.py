"""The only room with SQL: the tables, and one module of statements a concern.

Statements are built once, at import, and take bound values only; a statement built per call costs half as
much again in compilation alone. No parameter bears the name of a column: SQLAlchemy would add such a column to the
SET of an UPDATE, in a CTE too.
"""
