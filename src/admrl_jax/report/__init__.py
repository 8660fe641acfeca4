"""The report of a run: tables, text and figures from the files that the run left."""
