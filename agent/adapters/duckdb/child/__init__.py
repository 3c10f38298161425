"""The program of a child process: `python -m agent.adapters.duckdb.child COPY`. Nothing else imports these modules.

__main__   carries out the parent's commands
engine     DuckDB, limited to the copy: the only module of the agent that imports duckdb
contents   rows and digests of tables, and folding
reading    pages of memories
comparing  which rows a target does not have, by sets of hashes
stored     which chunks of rows are as in the same main file
tables     which tables hold memories, and the statements that read them
"""
