"""Tasks of lm-evaluation-harness that come with the package: their YAML files and the data behind them."""
