"""One sequence on several processes, exactly: context parallelism for every language model."""

from megabase.parallel.shards import Shards, context_parallel

__all__ = ["Shards", "context_parallel"]
