"""Who works on which shard: this process, others beside it, a task of an array, Ray's actors."""
