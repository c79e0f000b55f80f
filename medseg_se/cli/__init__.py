"""The command line: `main` dispatches, `train` hosts LightningCLI, `commands` holds the typed functions."""
