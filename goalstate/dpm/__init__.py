"""The data plane manager: takes intent, publishes goal state, and says when hosts have it."""
