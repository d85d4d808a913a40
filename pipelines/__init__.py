"""The work of a re-identification pipeline, in the order the data flows."""
