"""Models as data: parts by name, put together from a config, swapped in it or in a model that is built."""
