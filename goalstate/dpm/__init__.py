"""The data plane manager: takes intent, keeps it, publishes goal state, and says when hosts have it."""
