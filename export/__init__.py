"""From a trained student to a deployable bundle."""
