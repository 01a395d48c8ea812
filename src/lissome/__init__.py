"""lissome makes a model fit the machine you own, and proves it."""
