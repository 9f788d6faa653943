"""The subcommands of `deitlt`: each module has `add_to`, which adds its parser."""
