"""Storage that is slower than memory: what the plan will need is fetched before a loader asks for it."""
