"""Students: losses, optimisers and the step."""
