"""The order of an epoch's records. `ShuffleSpec` chooses one; each version of it stays as it is."""
