"""Search spaces: one module a system, and the axes that systems share.

A space maps recipe keys (`schedule.warmup_epochs`) to Ray Tune domains.
"""

from tune_spaces.registry import list_spaces, search_space

__all__ = ["list_spaces", "search_space"]
