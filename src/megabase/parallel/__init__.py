"""One sequence on several processes, exactly: context parallelism for every language model."""

from megabase.parallel.shards import Shards, context_parallel, join_processes

__all__ = ["Shards", "context_parallel", "join_processes"]
