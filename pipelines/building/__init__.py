"""From images to shards: sources, the builder, the checker, shards of other writers."""
