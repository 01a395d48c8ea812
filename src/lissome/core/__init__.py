"""The words of the house: errors, configs, measurements, contracts, verdicts, tasks, manifests, statistics, progress, cache."""
