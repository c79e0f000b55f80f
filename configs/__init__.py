"""The shipped recipes: YAML files that `medseg-se configs` lists and `medseg-se fit --config NAME` runs."""
