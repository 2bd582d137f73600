"""The words everybody speaks: array types, sharding rules, trees, random streams, metrics."""
